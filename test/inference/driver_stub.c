/* CUDA's driver on the CPU's memory, for the few calls that engines need: the real cuda-bindings
   load it in place of libcuda.so.1, so that what they are given can be checked without a GPU.
   Only copies can be recorded. Each call answers an error if a handle is not the one it gave. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum { MAJOR = 75, MINOR = 76, NON_BLOCKING = 1, THREAD_LOCAL = 1, MOST_COPIES = 64 };

typedef unsigned long long Address;
typedef struct { void *to; const void *from; size_t size; } Copy;
typedef struct { Copy copies[MOST_COPIES]; int count; } Graph;

static char context, stream;
static Graph *recording;

static int copy(void *to, const void *from, size_t size, void *on) {
    if (on != &stream) return INVALID_VALUE;
    if (!recording) memmove(to, from, size);
    else recording->copies[recording->count++] = (Copy){to, from, size};
    return OK;
}

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { return *version = 13010, OK; }
int cuGetErrorName(int status, const char **name) { return *name = "STUB_NAME", OK; }
int cuGetErrorString(int status, const char **text) { return *text = "stub text", OK; }
int cuDeviceGet(int *device, int index) { return *device = index, index ? INVALID_DEVICE : OK; }
int cuDeviceGetAttribute(int *value, int kind, int device) {
    return *value = kind == MAJOR ? 8 : kind == MINOR ? 9 : 0, OK;
}
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "Stub", length), OK; }
int cuDeviceTotalMem_v2(size_t *size, int device) { return *size = 1ull << 33, OK; }
int cuMemGetInfo_v2(size_t *left, size_t *total) { return *left = 1, *total = 2, OK; }
int cuDevicePrimaryCtxRetain(void **made, int device) { return *made = &context, OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return puts("context released"), OK; }
int cuCtxSetCurrent(void *given) { return given == &context ? OK : INVALID_CONTEXT; }
int cuStreamCreate(void **made, unsigned flags) {
    return *made = &stream, flags == NON_BLOCKING ? OK : INVALID_VALUE;
}
int cuStreamDestroy_v2(void *given) { return given == &stream ? OK : INVALID_VALUE; }
int cuStreamSynchronize(void *given) { return given == &stream ? OK : INVALID_VALUE; }
int cuMemAlloc_v2(Address *made, size_t size) { return *made = (Address)malloc(size), OK; }
int cuMemFree_v2(Address given) { return free((void *)given), OK; }
int cuMemHostAlloc(void **made, size_t size, unsigned flags) { return *made = malloc(size), OK; }
int cuMemFreeHost(void *given) { return free(given), OK; }
int cuMemsetD8Async(Address to, unsigned char value, size_t size, void *on) {
    return memset((void *)to, value, size), on == &stream ? OK : INVALID_VALUE;
}
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *on) {
    return copy((void *)to, from, size, on);
}
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *on) {
    return copy(to, (void *)from, size, on);
}
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, void *on) {
    return copy((void *)to, (void *)from, size, on);
}
int cuStreamBeginCapture_v2(void *on, int mode) {
    if (on != &stream || mode != THREAD_LOCAL || recording) return INVALID_VALUE;
    return recording = calloc(1, sizeof(Graph)), OK;
}
int cuStreamEndCapture(void *on, void **made) { return *made = recording, recording = NULL, OK; }
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    return *made = graph, OK;
}
int cuGraphDestroy(void *graph) { return OK; }
int cuGraphLaunch(void *given, void *on) {
    Graph *graph = given;
    for (int i = 0; i < graph->count; i++)
        memmove(graph->copies[i].to, graph->copies[i].from, graph->copies[i].size);
    return on == &stream ? OK : INVALID_VALUE;
}
int cuGraphExecDestroy(void *given) { return free(given), OK; }

/* The newest version of a function, as the driver gives it to those who ask by its plain name. */
int cuGetProcAddress_v2(
    const char *name, void **found, int version, unsigned long long flags, int *status) {
    char newest[128];
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (!strcmp(name, "cuGraphInstantiate")) name = "cuGraphInstantiateWithFlags";
    snprintf(newest, sizeof newest, "%s_v2", name);
    *found = dlsym(self, newest);
    if (!*found) *found = dlsym(self, name);
    if (status) *status = !*found;
    return *found ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **found, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, NULL);
}
