"""A skip step is short enough to be read: how many functions of ours it passes through, and in how many files."""

import sys
from pathlib import Path

import tapstudy

ROOT = Path(tapstudy.__file__).parent
MOST = 64, 18, 125  # functions, files, calls


def test_a_skip_step_stays_short(monkeypatch):
    """Of a run in which two windows of the same spacing have passed, so that the weights of the third are known."""
    pipe = tapstudy.load("mnist-dit")
    kind, steps = type(pipe.transformer), []
    forward = kind.__call__

    def watched(model, *args, **kwargs):
        calls = []

        def note(frame, event, _):
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(f"{ROOT}/") and "<" not in code.co_name:
                calls.append((code.co_filename, code.co_qualname))

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return forward(model, *args, **kwargs)
        finally:
            sys.setprofile(before)
            if model is pipe.transformer:
                steps.append(calls)

    monkeypatch.setattr(kind, "__call__", watched)
    with tapstudy.tap(pipe, interval=3) as handle:
        pipe([3], num_inference_steps=14)
    (context,) = handle.summary().contexts
    assert context.mask.endswith("F..")
    calls = steps[-1]
    functions, files = set(calls), {file for file, _ in calls}
    found = f"{len(functions)} functions in {len(files)} files, {len(calls)} calls:\n" + "\n".join(map(str, functions))
    counts = len(functions), len(files), len(calls)
    assert all(count <= most for count, most in zip(counts, MOST, strict=True)), found
