"""What `app.py` shows in a browser: uploads, a visitor's sitting, the page. Importing this package loads no model."""
