"""The arithmetic that LoRA needs: floating-point operations of a training step, counted from the shapes.

A multiplication and the addition that follows it are 2 operations. Matrix products are counted and nothing else: norms, activations,
softmax and the optimizer are less than one part in a hundred. Padding is not counted; it takes no part in the result.
"""

import json
from typing import NamedTuple


class Shape(NamedTuple):
    """The sizes of a BERT encoder."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of(cls, model):
        """The shape that a checkpoint's config.json tells."""
        config = json.loads((model / "config.json").read_text())
        return cls(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])


def lora_flops(shape, lengths, rank, labels=2):
    """The operations of one training step with LoRA on query and value, a frozen pooler and a trained classifier.

    `lengths` holds the tokens of each sequence. Counted are the forward pass, the gradients of the inputs down to the lowest trained
    matrices, and the gradients of the trained weights. Not needed, and not counted: gradients of frozen weights; everything below the
    lowest layer's query and value; of the last layer all but its keys and values and what follows from the first token's query, since
    the pooler reads that token only.
    """
    layers, hidden, intermediate = shape
    tokens, sequences = sum(lengths), len(lengths)
    squares = sum(length * length for length in lengths)

    def square(rows):
        return 2 * rows * hidden * hidden

    def thin(rows):  # with A or B
        return 2 * rows * hidden * rank

    def layer(queries, pairs):
        dense = 2 * square(tokens) + 2 * square(queries) + 2 * (2 * queries * hidden * intermediate)
        attention = 2 * pairs * hidden  # one product, over all heads together
        branches = thin(tokens) + thin(queries)  # one product, of value and of query
        forward = dense + 2 * attention + 2 * branches
        # Of the dense layers: inputs. Of attention: scores and value, then query and key. Of each branch: A, B, the middle, the input.
        backward = dense + 4 * attention + 4 * branches
        # In the lowest layer the key leads to nothing that is trained, and the inputs are the frozen embeddings.
        lowest = forward + backward - 2 * square(tokens) - square(queries) - attention - branches
        return forward + backward, lowest

    whole, lowest = layer(tokens, squares)
    last, lowest_and_last = layer(sequences, tokens)
    encoder = lowest_and_last if layers == 1 else lowest + (layers - 2) * whole + last
    pooler = 2 * square(sequences)
    classifier = 3 * (2 * sequences * hidden * labels)
    return encoder + pooler + classifier


def dense_products(shape, tokens):
    """The (times, rows, inner, columns) of each kind of dense product in a layer, forward and for the gradient of the input."""
    _, hidden, intermediate = shape
    return [
        (4, tokens, hidden, hidden),
        (1, tokens, hidden, intermediate),
        (1, tokens, intermediate, hidden),
    ]
