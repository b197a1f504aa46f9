"""A script for the environment that has VBench: it judges one video. It imports nothing of this package.

Arguments: folder with `video.npy` (uint8, frame, y, x, 3), prompt, device, frames a second. Writes `dimensions.json`
there: the score of every dimension, 0 to 1.
"""

import json
import sys
from pathlib import Path

DIMENSIONS = (
    "subject_consistency", "background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
    "imaging_quality",
)  # fmt: skip


def main(folder: str, prompt: str, device: str, rate: str) -> None:
    """Judge the video in the folder."""
    import cv2
    import numpy
    import vbench

    frames = numpy.load(Path(folder) / "video.npy")
    videos = Path(folder) / "videos"
    videos.mkdir()
    size = (frames.shape[2], frames.shape[1])
    writer = cv2.VideoWriter(str(videos / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), float(rate), size)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    vbench.VBench(device, str(info), folder).evaluate(
        videos_path=str(videos), name="video", prompt_list={"video.mp4": prompt}, dimension_list=list(DIMENSIONS),
        mode="custom_input", imaging_quality_preprocessing_mode="longer",
    )  # fmt: skip
    found = json.loads((Path(folder) / "video_eval_results.json").read_text())
    scores = {name: float(found[name][0]) for name in DIMENSIONS}
    (Path(folder) / "dimensions.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
