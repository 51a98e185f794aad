"""Every run of a store on a page of this computer: read by shelf.py, drawn by page.py, served by server.py."""
