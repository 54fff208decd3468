"""
One network, several GPUs
=========================

Several processes can train one network together, each with a part of the samples. Use
this when one fit takes too long on one device. The same script runs with one process or
with many:

    python examples/several_processes.py

    torchrun --nproc-per-node=2 examples/several_processes.py

The output below is of one process. :doc:`/guide/several_gpus` has the details.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/several_processes.png'

# %%
# Every process loads the same data and calls `fit` with the same arguments. `fit`
# distributes the samples. `batch_size` is the total over all processes.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import distributed

from skbsd import BSDClassifier
from skbsd.display import TrainingDisplay

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

model = BSDClassifier(random_state=0, verbose=0).fit(X_train, y_train)

# %%
# Afterwards every process has the fitted model, with the beliefs about all samples.
# Only the first process has to print and to save.
n_processes = distributed.get_world_size() if distributed.is_initialized() else 1
is_first = n_processes == 1 or distributed.get_rank() == 0
if is_first:
    accuracy = model.score(X_test, y_test)
    print(f"{n_processes} process(es), {len(model.posterior_)} beliefs")
    print(f"test accuracy {100 * accuracy:.1f} %")

# %%
# The history covers the samples of all processes.
if is_first:
    TrainingDisplay.from_estimator(model)
    plt.show()
