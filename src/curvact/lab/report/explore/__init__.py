"""The page of `curvact explore`: activations and small networks while κ moves."""
