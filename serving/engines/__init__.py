"""What makes tokens behind the Engine protocol: transformers (`hf`) and vLLM (`vllm`).

Light to import; each engine brings its heavy packages with it.
"""
