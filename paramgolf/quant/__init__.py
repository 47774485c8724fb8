"""Hessians, GPTQ, grids: float weights in, integers and scales out."""
