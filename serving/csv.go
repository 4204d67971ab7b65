package serving

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// decodeCSV reads a table, whose first line names the columns, for a model with one
// input of rows of numbers. A cell that is empty is NaN where the input can be.
func (m *Model) decodeCSV(body []byte) ([]Tensor, error) {
	specs := m.Engine.Signature().Inputs
	if len(specs) != 1 || len(specs[0].Shape) != 2 || Datatype(specs[0].Type) == Bytes {
		return nil, atelier.Errorf(atelier.Unsupported, "CSV came, and the model's inputs are not one of rows of numbers: %s", names(specs)).
			WithRemedy("Send JSON: dataframe_split, dataframe_records, instances or inputs.")
	}
	r := csv.NewReader(bytes.NewReader(body))
	r.ReuseRecord = true
	head, err := r.Read()
	if err != nil {
		return nil, notCSV(err)
	}
	columns := append([]string(nil), head...)
	p := dataParser{typ: Datatype(specs[0].Type)}
	rows := int64(0)
	for ; ; rows++ {
		record, err := r.Read() // it checks the number of cells
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, notCSV(err)
		}
		for c, cell := range record {
			p.count++
			if err := p.cell(strings.TrimSpace(cell), rows, columns[c]); err != nil {
				return nil, err
			}
		}
	}
	t := Tensor{Type: p.typ, Shape: []int64{rows, int64(len(columns))}, Data: p.out.Data}
	return []Tensor{t}, checkShape(t.Shape, &specs[0], "the shape of the table", "")
}

// cell reads one number.
func (p *dataParser) cell(word string, row int64, column string) error {
	switch p.typ {
	case Bool:
		word = strings.ToLower(word)
	case FP16, BF16, FP32, FP64:
		if word == "" {
			word = "NaN"
		}
	}
	p.field = fmt.Sprintf("column %q of row %d", clip(column), row)
	p.raw, p.at = []byte(word), 0
	if word == "" || strings.ContainsAny(word, "\",[] \t\r\n") {
		return p.bad("holds %.40q, %s was expected", word, expected(p.typ))
	}
	return p.element()
}

func notCSV(err error) error {
	if errors.Is(err, io.EOF) {
		return atelier.Errorf(atelier.Invalid, "the body is empty, CSV with a line of names first was expected")
	}
	return atelier.Errorf(atelier.Invalid, "the body is no CSV: %w", err)
}
