"""Where tasks run. Every cloud is reached through the Cloud protocol in base.py."""
