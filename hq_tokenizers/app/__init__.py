"""The web page of a generator, built with Gradio, which only the modules of this folder import.

Internal: the command `app` is what stays the same.
"""
