"""A Space that runs as its visitors see it."""

import contextlib
import os
import re
import subprocess
import sys
import time


@contextlib.contextmanager
def running_space(folder, log):
    """The address of the Space in `folder`; what it prints goes to the file `log`."""
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "starft_hf", "space", str(folder)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            for _ in range(240):
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                if found is not None or process.poll() is not None:
                    break
                time.sleep(0.5)
            assert found is not None, log.read_text()
            yield found.group()
        finally:
            process.terminate()
            process.wait(30)
