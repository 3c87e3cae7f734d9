"""New rows of the embedding and of the head, and a model that has them.

No weight of the model is trained. New rows, and the head rows of base tokens that begin an n-gram,
are fitted: for ``rows=fitted`` the embedding's by gradient and the head's by L-BFGS, for
``rows=distilled`` both by gradient after that. All other kinds are computed in closed form.
"""
