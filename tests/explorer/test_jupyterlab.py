"""The notebook in JupyterLab, in a real browser: run all cells, hover the page."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.explorer.browsing import collect_errors, open_browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_predictor_maps.ipynb"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a fresh JupyterLab with the notebook in its folder, beside the figures that its text shows."""
    pytest.importorskip("jupyterlab")
    pytest.importorskip("playwright")
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell["cell_type"] == "code":  # as if it had never run
            cell["outputs"], cell["execution_count"] = [], None
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks" / NOTEBOOK.name)
    shutil.copytree(
        NOTEBOOK.parents[1] / "figures", folder / "figures", ignore=lambda *_: ["emoji-flux", "mnist-dit-rough"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
              "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip
    settings = {name: str(tmp_path_factory.mktemp(name.lower())) for name in places}
    news = (
        Path(settings["JUPYTERLAB_SETTINGS_DIR"])
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]  # fmt: skip
    root = os.pathsep.join(filter(None, [str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH")]))
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings, "PYTHONPATH": root})
        try:
            _wait(f"http://127.0.0.1:{port}/api?token={token}", server)
            yield f"http://127.0.0.1:{port}/lab/tree/notebooks/{NOTEBOOK.name}?token={token}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _wait(address, server):
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except urllib.error.URLError:
            assert server.poll() is None, "JupyterLab ended"
            time.sleep(0.25)
    raise TimeoutError(address)


def _run_all(page, sync_api):
    """A kernel that has only just come up may lose what it is asked, or JupyterLab asks to wait for it: ask again."""
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.get_by_text("[1]:").or_(page.get_by_text("[*]:")).first.wait_for(state="attached", timeout=4000)
            return
        except sync_api.TimeoutError:
            if page.locator(".jp-Dialog").count():
                page.locator(".jp-Dialog .jp-mod-accept").click()
    raise AssertionError("no cell ran")


def test_the_notebook_works_in_jupyterlab(lab):
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        errors = collect_errors(page)
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        _run_all(page, pytest.importorskip("playwright.sync_api"))
        frame = page.frame_locator("iframe[srcdoc]")
        frame.locator("#forecasts tbody tr").first.wait_for(timeout=120_000)
        frame.locator("#map").hover(position={"x": 10, "y": 10})
        assert frame.locator("#token").inner_text() == "Token in row 0, column 0 (under the pointer)"
        assert page.locator('.jp-OutputArea-output[data-mime-type*="stderr"]').count() == 0
        assert errors == []
