"""
Text with a transformer
=======================

A transformer from Hugging Face classifies sentences by the library that they document.
The sentences come from docstrings of libraries that are installed with skbsd, so
nothing is downloaded. The output of the tokenizer is passed to `fit` directly. Run it
with `pip install transformers`.
"""

# sphinx_gallery_thumbnail_path = '_static/thumbnails/text.png'

# %%
# The data are 1,000 sentences from the docstrings of each of four libraries. Sentences
# that occur in several libraries are left out.
import importlib
import pkgutil
import re
from collections import defaultdict

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from skbsd import BSDClassifier
from skbsd.display import ReliabilityDisplay
from skbsd.metrics import expected_calibration_error


def sentences(module):
    """Yield sentences of 6 to 30 words from the docstrings of a module."""
    for name in sorted(vars(module)):
        docstring = getattr(vars(module)[name], "__doc__", None) or ""
        for sentence in re.split(r"(?<=[.])\s+|\n\s*\n", docstring):
            words = re.findall(r"[a-z]+", sentence.lower())
            if sentence.strip().endswith(".") and 6 <= len(words) <= 30:
                yield " ".join(words)


def modules(package):
    """Yield a package's public modules, without its tests."""
    yield importlib.import_module(package)
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    for module in sorted(found, key=lambda module: module.name):
        if not module.name.startswith("_") and module.name not in SKIPPED:
            yield importlib.import_module(f"{package}.{module.name}")


SKIPPED = {"conftest", "tests", "testing", "f2py", "distutils", "typing", "setup"}
PACKAGES = {
    "NumPy": ["numpy"],
    "SciPy": ["scipy.stats", "scipy.signal", "scipy.optimize", "scipy.sparse"],
    "scikit-learn": [
        "sklearn.linear_model",
        "sklearn.ensemble",
        "sklearn.metrics",
        "sklearn.model_selection",
        "sklearn.preprocessing",
        "sklearn.cluster",
    ],
    "torch": ["torch.nn", "torch.optim", "torch.distributions"],
}
libraries = defaultdict(set)
for library, packages in PACKAGES.items():
    for package in packages:
        for module in modules(package):
            for sentence in sentences(module):
                libraries[sentence].add(library)
rng = np.random.default_rng(0)
texts, labels = [], []
for library in PACKAGES:
    own = sorted(text for text, found in libraries.items() if found == {library})
    texts.extend(rng.permutation(own)[:1000].tolist())
    labels.extend([library] * 1000)
train, test, y_train, y_test = train_test_split(
    texts, labels, train_size=0.7, random_state=0, stratify=labels
)

# %%
# The tokenizer's vocabulary is learnt from the training sentences. To use a pretrained
# tokenizer and model instead, load them with ``AutoTokenizer.from_pretrained`` and
# ``AutoModel.from_pretrained``; the rest of the code stays the same.
words = Tokenizer(models.BPE(unk_token="[UNK]"))
words.normalizer = normalizers.Lowercase()
words.pre_tokenizer = pre_tokenizers.Whitespace()
special = ["[PAD]", "[UNK]"]
trainer = trainers.BpeTrainer(
    vocab_size=2000, special_tokens=special, show_progress=False
)
words.train_from_iterator(train, trainer)
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
)


def encode(sentences):
    """Return token indices and an attention mask, of shape (n, 24) each."""
    return tokenizer(
        sentences, padding="max_length", truncation=True, max_length=24
    ).data


X_train, X_test = encode(train), encode(test)
print({name: np.shape(values) for name, values in X_test.items()})


# %%
# X is a dict whose entries become the arguments of ``forward``. Token indices remain
# integers. ``calibration="hold-out"`` trains a single network on four fifths of the
# sentences and calibrates it on the others. This is faster than cross-fitting.
class Reader(nn.Module):
    """Classifies the mean of a transformer's outputs.

    Parameters
    ----------
    width, n_layers : int
        Of the transformer.
    """

    def __init__(self, width=64, n_layers=1):
        super().__init__()
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=n_layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=24,
        )
        self.body = BertModel(config, add_pooling_layer=False)
        self.classify = nn.Linear(width, len(PACKAGES))

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """Compute logits of shape (n, 4) from tokens of shape (n, length)."""
        outputs = self.body(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2)
        return self.classify((mask * outputs).sum(dim=1) / mask.sum(dim=1))


model = BSDClassifier(
    Reader,
    max_epochs=12,
    lr=2e-3,
    batch_size=64,
    calibration="hold-out",
    random_state=0,
)
model.fit(X_train, y_train)

# %%
# The baseline is a linear model of word frequencies. It is at least as good here,
# because 2,800 sentences are few for a transformer without pretraining.
linear = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=1000))
linear.fit(train, y_train)
predictions = {
    "linear model of words": linear.predict_proba(test),
    "transformer": model.predict_proba(X_test),
}
for name, proba in predictions.items():
    accuracy = np.mean(model.classes_[proba.argmax(axis=1)] == y_test)
    ece = expected_calibration_error(y_test, proba)
    print(
        f"{name:22s} accuracy {accuracy:.1%}, log loss {log_loss(y_test, proba):.3f}, "
        f"ECE {ece:.1%}"
    )

# %%
# The transformer's accuracy at each confidence:
display = ReliabilityDisplay.from_predictions(
    y_test, predictions["transformer"], name="transformer"
)
plt.show()

# %%
# Predictions for new sentences:
questions = [
    "return a dense array of the same shape filled with zeros",
    "number of trees in the forest",
    "applies dropout to the input during training",
]
for question, proba in zip(
    questions, model.predict_proba(encode(questions)), strict=True
):
    best = proba.argmax()
    print(f"{question}: {model.classes_[best]} ({proba[best]:.0%})")
