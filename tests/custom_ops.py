"""A real library of custom operators, compiled by the C compiler of the machine, and models that use it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

SOURCE = r"""
/* The part of ONNX Runtime's C interface that is used here; functions are named by their places in the table. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef void* Status;
typedef void* const* Api;
typedef struct { Api (*get)(uint32_t); const char* (*version)(void); } ApiBase;
typedef struct Op {
  uint32_t version;
  void* (*create)(const struct Op*, Api, const void*);
  const char* (*name)(const struct Op*);
  const char* (*provider)(const struct Op*);
  int (*input_type)(const struct Op*, size_t);
  size_t (*inputs)(const struct Op*);
  int (*output_type)(const struct Op*, size_t);
  size_t (*outputs)(const struct Op*);
  void (*compute)(void*, void*);
  void (*destroy)(void*);
  int (*input_is)(const struct Op*, size_t);
  int (*output_is)(const struct Op*, size_t);
} Op;

enum { CREATE_DOMAIN = 26, DOMAIN_ADD = 27, ADD_DOMAIN = 28, DATA = 51, RANK = 61, DIMS = 62, SHAPE = 65,
       INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99 };
static Api api;
#define CALL(number, ...) ((Status(*)())api[number])(__VA_ARGS__)

static void* create(const Op* op, Api given, const void* info) { return malloc(1); }
static void destroy(void* kernel) { free(kernel); }
static const char* name(const Op* op) { return "PairSum"; }
static const char* provider(const Op* op) { return NULL; }
static int type(const Op* op, size_t index) { return 1; }
static size_t one(const Op* op) { return 1; }
static int required(const Op* op, size_t index) { return 0; }

/* (n, 2c, ...) -> (n, c, ...): the sum of each two neighbours */
static void compute(void* kernel, void* context) {
  const void* x; void *y, *info; float *from, *to; size_t rank; int64_t dims[8], inner = 1;
  CALL(INPUT, context, (size_t)0, &x);
  CALL(SHAPE, x, &info);
  CALL(RANK, info, &rank);
  CALL(DIMS, info, dims, rank);
  ((void (*)(void*))api[RELEASE_SHAPE])(info);
  dims[1] /= 2;
  for (size_t i = 2; i < rank; i++) inner *= dims[i];
  CALL(OUTPUT, context, (size_t)0, (const int64_t*)dims, rank, &y);
  CALL(DATA, x, &from);
  CALL(DATA, y, &to);
  for (int64_t i = 0; i < dims[0] * dims[1]; i++)
    for (int64_t j = 0; j < inner; j++)
      to[i * inner + j] = from[2 * i * inner + j] + from[(2 * i + 1) * inner + j];
}

static const Op op = {8, create, name, provider, type, one, type, one, compute, destroy, required, required};

Status RegisterCustomOps(void* options, const ApiBase* base) {
  void* domain; Status status;
  api = base->get(8);
  if ((status = CALL(CREATE_DOMAIN, "mine", &domain))) return status;
  if ((status = CALL(DOMAIN_ADD, domain, &op))) return status;
  return CALL(ADD_DOMAIN, options, domain);
}
"""


def compiled(folder: Path) -> Path:
    """The library with `mine.PairSum`. Skips where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the library of custom operators cannot be made")
    source, library = folder / "pair_sum.c", folder / "libpair_sum.so"
    source.write_text(SOURCE)
    subprocess.run(
        [compiler, "-std=gnu11", "-w", "-shared", "-fPIC", "-O1", "-o", library, source], check=True
    )
    return library


def network(path: Path) -> Path:
    """Convolutions before and behind a PairSum of 32 channels."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)

    weights = [
        weight("first.weight", 64, 3, 3, 3),
        weight("second.weight", 32, 64, 3, 3),
        weight("third.weight", 64, 16, 3, 3),
        weight("head.weight", 64, 10),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second.weight"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("PairSum", ["c"], ["d"], "pairs", domain="mine"),
        helper.make_node("Conv", ["d", "third.weight"], ["e"], "third", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "head.weight"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", 1, ["n", 10])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
