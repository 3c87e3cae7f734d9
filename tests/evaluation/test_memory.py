"""What a decode step reads of a model's parameters."""

import pytest
from torch import nn

from tests.conftest import SHAPES, tiny
from trimtab.evaluation.memory import parameter_bytes, step_bytes


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_reads_one_row_of_a_table_and_all_else(shape):
    model = tiny(shape).model
    head = model.get_output_embeddings().weight
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    unread = sum(table.nbytes - table[0].nbytes for table in tables if table is not head)
    assert step_bytes(model) == parameter_bytes(model) - unread
    assert unread > 0 or (len(tables) == 1 and tables[0] is head)
