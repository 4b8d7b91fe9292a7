"""New special tokens, and the rows of the embeddings that they take."""

from transformers import PreTrainedModel


def give_row(model: PreTrainedModel, token_id: int) -> None:
    """Makes sure that a new token has a row in the input and output embeddings.

    Embedding matrices are usually longer than the vocabulary: a row that is there is kept as it is. If there is none,
    rows are added, each the mean of the others.
    """
    rows = model.get_input_embeddings().num_embeddings
    if token_id < rows:
        return
    # The mean of the other rows, exactly: transformers would draw near it, each time another row.
    model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        matrix.data[rows:] = matrix.data[:rows].float().mean(0).to(matrix.dtype)


def origin_of_row(rows: int, token_id: int, own: bool) -> str:
    """Where a token's row came from, for messages.

    Args:
        rows: Rows of the embeddings before `give_row`.
        token_id: The token's id.
        own: Whether the tokenizer knew the token before.
    """
    if token_id >= rows:
        added = token_id + 1 - rows  # several where the tokenizer has more tokens than the model had rows
        return "one row added to the embeddings" if added == 1 else f"one of {added} rows added to the embeddings"
    return f"the tokenizer's own row of the {rows} embeddings" if own else f"an unused row of the {rows} embeddings"
