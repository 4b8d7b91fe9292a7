"""Small end-to-end material: easy-VQA records and a tiny Qwen2.5-VL to train on them."""
