"""The Hessian of a `Loss`: its diagonal, the parts of that diagonal, and its spectrum."""
