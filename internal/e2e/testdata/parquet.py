"""Prints the rows of all Parquet files below a directory as JSON, one a line, and checks the columns' types."""

import glob
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq

for path in sorted(glob.glob(sys.argv[1] + "/**/*.parquet", recursive=True)):
    table = pq.read_table(path)
    schema = table.schema
    assert schema.field("time").type == pa.timestamp("us", tz="UTC"), schema
    assert schema.field("version").type == pa.int32() and schema.field("latency_us").type == pa.int64(), schema
    pixels = schema.field("inputs").type.field("pixels").type
    assert pixels.field("values").type.value_type == pa.float32() and pixels.field("shape").type.value_type == pa.int64(), schema
    assert schema.field("outputs").type.field("digit").type.field("values").type.value_type == pa.int64(), schema
    for row in table.to_pylist():
        print(json.dumps(row, default=str))
