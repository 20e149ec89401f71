"""Everything that people see, as PNG files to look at. `make gallery` needs a Chromium."""
