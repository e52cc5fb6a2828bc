# SPDX-License-Identifier: Apache-2.0
# Runs once in the template, before its sandboxes are made: what is imported here is there at once in
# each of them. The usual short names are left in scope.
import numpy as np
import pandas as pd
import scipy
import sklearn
import matplotlib
import matplotlib.pyplot as plt


def _warm_up():
    """Uses what is loaded only at its first use: submodules, fonts, caches."""
    import io

    import scipy.cluster, scipy.interpolate, scipy.linalg, scipy.optimize, scipy.signal  # noqa: E401
    import scipy.sparse, scipy.spatial, scipy.stats  # noqa: E401
    import sklearn.cluster, sklearn.compose, sklearn.datasets, sklearn.decomposition  # noqa: E401
    import sklearn.ensemble, sklearn.linear_model, sklearn.metrics, sklearn.model_selection  # noqa: E401
    import sklearn.neighbors, sklearn.pipeline, sklearn.preprocessing, sklearn.svm  # noqa: E401
    import sklearn.tree  # noqa: F401

    table = pd.DataFrame({"a": ["x", "y", "x"], "b": [1.0, 2.0, 4.0]})
    text = io.StringIO(table.to_csv(index=False))
    pd.read_csv(text).groupby("a").agg(["mean", "sum"]).to_string()
    display(table.merge(table, on="a").describe())
    x = np.arange(12.0).reshape(6, 2)
    sklearn.linear_model.LinearRegression().fit(x @ np.eye(2), x.sum(axis=1)).predict(x)
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot([0, 1], [0, 1], label="a")
    axes.set_title("warm")
    axes.legend()
    plt.show()
    for kind in ("scatter", "bar"):
        figure, axes = plt.subplots(figsize=(2, 2))
        getattr(axes, kind)(["a", "b"], [1, 2])
        plt.show()
    figure, axes = plt.subplots(figsize=(2, 2))
    axes.plot(pd.date_range("2024-01-01", periods=3), [1, 2, 3])
    plt.show()


_warm_up()
del _warm_up
