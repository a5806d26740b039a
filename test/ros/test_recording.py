"""The operator's records: lines that can be followed live, films, and exact counts of pictures."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from vla_align_ros.ros.recording import EpisodeRecord, Film, JsonLines, read_json_lines


def gradient(shift: int) -> np.ndarray:
    column = (np.arange(64, dtype=np.uint8) * 3 + shift).astype(np.uint8)
    return np.repeat(np.tile(column, (64, 1))[..., None], 3, axis=2)


def test_lines_can_be_read_while_the_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_json_lines(path) == []
    lines = JsonLines(path)
    lines.append({"a": 1})
    lines.append({"b": "ä"})
    with path.open("a") as file:
        file.write('{"half')
    assert read_json_lines(path) == [{"a": 1}, {"b": "ä"}]
    lines.close()


def test_a_film_plays_back_what_was_put_in(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with Film(path, rate_hz=5.0) as film:
        for k in range(7):
            film.add(gradient(k * 8))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == 5.0
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == 7
    difference = np.abs(pictures[3].astype(int) - gradient(24))
    assert difference.mean() < 4.0


def test_a_film_of_odd_pictures_leaves_their_last_row_and_column_out(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with Film(path, rate_hz=5.0) as film:
        film.add(gradient(0)[:63, :61])
    with av.open(str(path)) as container:
        (frame,) = container.decode(container.streams.video[0])
    assert (frame.height, frame.width) == (62, 60)


def test_pictures_count_by_stamp_between_the_episodes_first_and_last_score(tmp_path: Path) -> None:
    begin = {"image_stamp": [10, 0], "frames_sent": 1}
    record = EpisodeRecord(tmp_path / "episodes" / "000.mp4", rate_hz=5.0, begin=begin)
    assert not record.wants(10.0), "the picture of the reset belongs to the acknowledgement"
    for k in range(1, 11):
        if record.wants(10.0 + 0.1 * k):
            record.add(gradient(k), 10.0 + 0.1 * k)
    record.say("put the carrot on the plate", 0.5)
    record.end({"image_stamp": [11, 100_000_000], "frames_sent": 12}, {"success": True})
    assert record.wants(11.1), "one that was still on its way"
    assert not record.wants(11.2), "one of the time after"
    result = record.finish(tmp_path)
    assert result["frames_sent"] == result["frames_received"] == 11
    assert result["film_frames"] == 5
    assert result["film"] == "episodes/000.mp4"
    assert result["spoken"][0]["film_frame"] == 5
    assert result["success"]


def test_a_film_cut_short_still_opens(tmp_path: Path) -> None:
    begin = {"image_stamp": [0, 0], "frames_sent": 0}
    record = EpisodeRecord(tmp_path / "000.mp4", rate_hz=5.0, begin=begin)
    assert record.wants(1.0)
    record.add(gradient(0), 1.0)
    record.close()
    with av.open(str(tmp_path / "000.mp4")) as container:
        assert len(list(container.decode(video=0))) == 1


def test_a_film_without_pictures_is_closed_without_a_fuss(tmp_path: Path) -> None:
    with Film(tmp_path / "empty.mp4", rate_hz=5.0) as film:
        pass
    assert film.frames == 0
