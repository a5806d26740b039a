"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one adapter; none loads until it is used."""
