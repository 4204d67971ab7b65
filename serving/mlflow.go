package serving

import (
	"bytes"
	"context"
	"fmt"
	"mime"
	"net/http"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
)

// The routes of MLflow's scoring server (mlflow/pyfunc/scoring_server), with what its
// ONNX flavour makes of the inputs (mlflow/onnx).

// invocation is the JSON body of POST /invocations: exactly one of the first four.
type invocation struct {
	Split     *splitFrame      `json:"dataframe_split"`
	Records   []jsontext.Value `json:"dataframe_records"`
	Instances []jsontext.Value `json:"instances"`
	Inputs    jsontext.Value   `json:"inputs"`
	Params    map[string]any   `json:"params"`
}

// splitFrame is a data frame as pandas' orient="split" writes it.
type splitFrame struct {
	Columns []jsontext.Value `json:"columns"` // strings, or numbers where the frame has no names
	Index   jsontext.Value   `json:"index"`   // without meaning here
	Data    jsontext.Value   `json:"data"`    // rows
}

func (h *Handler) ping(w http.ResponseWriter, _ *http.Request) {
	status := http.StatusOK
	if h.model.Load() == nil {
		status = http.StatusServiceUnavailable
	}
	h.send(w, status, "application/json", []byte("\n"))
}

func (h *Handler) versionText(w http.ResponseWriter, _ *http.Request) {
	h.send(w, http.StatusOK, "text/plain; charset=utf-8", []byte(h.program))
}

func (h *Handler) invocations(w http.ResponseWriter, r *http.Request) {
	contentType := r.Header.Get("Content-Type")
	h.withBody(w, r, collect.DialectMLflow, func(ctx context.Context, body []byte) Answer {
		return h.Invocations(ctx, contentType, body)
	})
}

// Invocations answers MLflow's POST /invocations. contentType is that of the body, ""
// for JSON. Nothing of body is kept.
func (h *Handler) Invocations(ctx context.Context, contentType string, body []byte) Answer {
	m, err := h.loaded()
	if err != nil {
		return h.failedInvocation(err)
	}
	if e, ok := m.Engine.(Invoker); ok {
		a, err := e.Invoke(ctx, contentType, body)
		if err != nil {
			return h.failedInvocation(err)
		}
		return a
	}
	answer, err := m.invoke(ctx, contentType, body)
	if err != nil {
		return h.failedInvocation(err)
	}
	return Answer{Status: http.StatusOK, ContentType: "application/json", Fallback: h.fallback(), Body: answer}
}

// failedInvocation tells of err in MLflow's words besides ours.
func (h *Handler) failedInvocation(err error) Answer {
	word, ok := map[atelier.Code]string{
		atelier.Exhausted: "REQUEST_LIMIT_EXCEEDED", atelier.Unavailable: "TEMPORARILY_UNAVAILABLE", atelier.Timeout: "DEADLINE_EXCEEDED",
		atelier.Internal: "INTERNAL_ERROR",
	}[atelier.CodeOf(err)]
	if !ok {
		word = "BAD_REQUEST"
	}
	a := h.failed("invocations", err)
	head := quoted(append(quoted([]byte(`{"error_code":`), word), `,"message":`...), err.Error())
	a.Body = append(append(head, ','), a.Body[1:]...) // after its brace
	return a
}

func (m *Model) invoke(ctx context.Context, contentType string, body []byte) ([]byte, error) {
	kind := "application/json"
	if contentType != "" {
		var parameters map[string]string
		var err error
		if kind, parameters, err = mime.ParseMediaType(contentType); err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "Content-Type is %.80q: %w", contentType, err).WithField("Content-Type")
		}
		for name, value := range parameters {
			if name != "charset" || !slices.Contains([]string{"utf-8", "UTF-8", "utf8"}, value) {
				return nil, atelier.Errorf(atelier.Unsupported, "Content-Type has %.40s=%.40s, at most charset=utf-8 was expected", name, value).WithField("Content-Type")
			}
		}
	}
	var tensors []Tensor
	var rows bool // the answer is one record for each row
	var err error
	switch kind {
	case "application/json":
		tensors, rows, err = m.decodeInvocation(body)
	case "text/csv":
		tensors, err = m.decodeCSV(body)
		rows = true
	default:
		return nil, atelier.Errorf(atelier.Unsupported, "Content-Type is %.80q, application/json or text/csv was expected", contentType).WithField("Content-Type")
	}
	if err != nil {
		return nil, err
	}
	specs := m.Engine.Signature().Outputs
	all := make([]int, len(specs))
	for i := range all {
		all[i] = i
	}
	outputs, err := m.infer(ctx, tensors, all)
	if err != nil {
		return nil, err
	}
	if n, ok := sameRows(outputs); rows && ok {
		return m.appendRecords(outputs, n)
	}
	return m.appendOutputs(append([]byte(nil), `{"predictions":`...), outputs)
}

// decodeInvocation reads a body of JSON. rows is true where it is a data frame.
func (m *Model) decodeInvocation(body []byte) (tensors []Tensor, rows bool, err error) {
	var in invocation
	if err := decodeJSON(body, &in); err != nil {
		return nil, false, err
	}
	if len(in.Params) > 0 {
		return nil, false, atelier.Errorf(atelier.Unsupported, "params came, and an ONNX model takes none").
			WithRemedy("Send what it takes as inputs: %s.", names(m.Engine.Signature().Inputs)).WithField("params")
	}
	var came []string
	for name, here := range map[string]bool{
		"dataframe_split": in.Split != nil, "dataframe_records": in.Records != nil, "instances": in.Instances != nil, "inputs": in.Inputs != nil,
	} {
		if here {
			came = append(came, name)
		}
	}
	if len(came) != 1 {
		slices.Sort(came)
		return nil, false, atelier.Errorf(atelier.Invalid, "exactly one of dataframe_split, dataframe_records, instances and inputs was expected, %d came: %v", len(came), came)
	}
	switch came[0] {
	case "dataframe_split":
		tensors, err = m.fromSplit(in.Split)
		return tensors, true, err
	case "dataframe_records":
		tensors, err = m.fromRecords(in.Records, came[0])
		return tensors, true, err
	case "instances":
		tensors, err = m.fromInstances(in.Instances)
	default:
		tensors, err = m.fromInputs(in.Inputs)
	}
	return tensors, false, err
}

// frame is a data frame by columns.
type frame struct {
	field   string // its name in errors
	columns []string
	cells   [][]jsontext.Value // of each column
}

func (m *Model) fromSplit(s *splitFrame) ([]Tensor, error) {
	const field = "dataframe_split"
	if s.Data == nil {
		return nil, atelier.Errorf(atelier.Invalid, "%s.data is missing", field).WithField(field + ".data")
	}
	f := frame{field: field, columns: make([]string, len(s.Columns)), cells: make([][]jsontext.Value, len(s.Columns))}
	for i, c := range s.Columns {
		f.columns[i] = string(c)
		if c.Kind() == jsontext.KindString {
			name, err := jsontext.AppendUnquote(nil, c)
			if err != nil {
				return nil, atelier.Errorf(atelier.Invalid, "%s.columns[%d] is no string", field, i).WithField(field + ".columns")
			}
			f.columns[i] = string(name)
		}
	}
	if specs := m.Engine.Signature().Inputs; len(specs) == 1 {
		t, err := parseData(s.Data, Datatype(specs[0].Type), nil, field+".data")
		if err != nil {
			return nil, err
		}
		if s.Columns != nil && (len(t.Shape) < 2 || t.Shape[1] != int64(len(f.columns))) {
			return nil, atelier.Errorf(atelier.Invalid, "%s.data has the shape %v, rows of %d columns were expected", field, t.Shape, len(f.columns)).WithField(field + ".data")
		}
		return m.only(t, field+".data")
	}
	var rows [][]jsontext.Value
	if err := decodeJSON(s.Data, &rows); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "%s.data: %w", field, err).WithField(field + ".data")
	}
	for i, row := range rows {
		if len(row) != len(f.columns) {
			return nil, atelier.Errorf(atelier.Invalid, "%s.data[%d] has %d values for %d columns", field, i, len(row), len(f.columns)).WithField(field + ".data")
		}
		for c, cell := range row {
			f.cells[c] = append(f.cells[c], cell)
		}
	}
	return m.fromFrame(&f)
}

// fromRecords reads a list of objects with the same names each.
func (m *Model) fromRecords(records []jsontext.Value, field string) ([]Tensor, error) {
	f := frame{field: field}
	for i, record := range records {
		bad := func(format string, args ...any) error {
			return atelier.Errorf(atelier.Invalid, "%s[%d] %s", field, i, fmt.Sprintf(format, args...)).WithField(field)
		}
		if record.Kind() != jsontext.KindBeginObject {
			return nil, bad("is %.40s, an object was expected", record)
		}
		d := jsontext.NewDecoder(bytes.NewReader(record))
		_, err := d.ReadToken()
		n := 0
		for ; err == nil && d.PeekKind() == jsontext.KindString; n++ {
			var token jsontext.Token
			if token, err = d.ReadToken(); err != nil {
				break
			}
			name := token.String()
			var value jsontext.Value
			if value, err = d.ReadValue(); err != nil {
				break
			}
			at := n
			if n >= len(f.columns) || f.columns[n] != name { // they mostly have the same order
				at = slices.Index(f.columns, name)
			}
			if i == 0 {
				at, f.columns, f.cells = n, append(f.columns, name), append(f.cells, nil)
			}
			if at < 0 {
				return nil, bad("has %.80q, which the first one has not", name)
			}
			f.cells[at] = append(f.cells[at], value.Clone())
		}
		if err != nil {
			return nil, bad("cannot be read: %v", err)
		}
		if n != len(f.columns) {
			return nil, bad("has %d values, the first one has %d", n, len(f.columns))
		}
	}
	if len(m.Engine.Signature().Inputs) == 1 && len(f.columns) > 0 && len(records) > 0 {
		rows := []byte{'['}
		for i := range records {
			rows = append(rows, "[,"[min(i, 1)])
			if i > 0 {
				rows = append(rows, '[')
			}
			for c := range f.columns {
				if c > 0 {
					rows = append(rows, ',')
				}
				rows = append(rows, f.cells[c][i]...)
			}
			rows = append(rows, ']')
		}
		rows = append(rows, ']')
		t, err := parseData(rows[:len(rows):len(rows)], Datatype(m.Engine.Signature().Inputs[0].Type), nil, field)
		if err != nil {
			return nil, err
		}
		return m.only(t, field)
	}
	return m.fromFrame(&f)
}

// fromFrame takes the columns of a data frame for the inputs of their names.
func (m *Model) fromFrame(f *frame) ([]Tensor, error) {
	columns := map[string]jsontext.Value{}
	for i, name := range f.columns {
		if _, twice := columns[name]; twice {
			return nil, atelier.Errorf(atelier.Invalid, "%s has the column %.80q twice", f.field, name).WithField(f.field)
		}
		columns[name] = listOf(f.cells[i])
	}
	return m.fromColumns(columns, f.field)
}

// fromColumns takes values by the names of the inputs.
func (m *Model) fromColumns(columns map[string]jsontext.Value, field string) ([]Tensor, error) {
	specs := m.Engine.Signature().Inputs
	tensors, came := make([]Tensor, len(specs)), make([]bool, len(specs))
	for name, values := range columns {
		at, err := m.input(name, field)
		if err != nil {
			return nil, err
		}
		came[at] = true
		where := field + "." + clip(name)
		t, err := parseData(values, Datatype(specs[at].Type), nil, where)
		if err != nil {
			return nil, err
		}
		// A column of single values is a vector; many a model wants it upright.
		if want := specs[at].Shape; len(want) == 2 && len(t.Shape) == 1 && want[1] <= 1 {
			t.Shape = append(t.Shape, 1)
		}
		if err := checkShape(t.Shape, &specs[at], "the shape of "+where, where); err != nil {
			return nil, err
		}
		tensors[at] = t
	}
	return tensors, m.complete(came)
}

// only takes t for the one input of the model. A frame of one column is a vector
// where the input is one.
func (m *Model) only(t Tensor, field string) ([]Tensor, error) {
	spec := &m.Engine.Signature().Inputs[0]
	if len(t.Shape) == len(spec.Shape)+1 && len(t.Shape) > 1 && t.Shape[1] == 1 {
		t.Shape = slices.Delete(t.Shape, 1, 2)
	}
	return []Tensor{t}, checkShape(t.Shape, spec, "the shape of "+field, field)
}

// fromInstances reads one value, or one object of values by inputs, for each row.
func (m *Model) fromInstances(rows []jsontext.Value) ([]Tensor, error) {
	const field = "instances"
	if len(rows) == 0 || rows[0].Kind() != jsontext.KindBeginObject {
		return m.fromInputs(listOf(rows))
	}
	columns := map[string][]jsontext.Value{}
	for i, row := range rows {
		var values map[string]jsontext.Value
		if err := decodeJSON(row, &values); err != nil {
			return nil, atelier.Errorf(atelier.Invalid, "%s[%d]: %w", field, i, err).WithField(field)
		}
		for name, v := range values {
			if len(columns[name]) != i {
				return nil, atelier.Errorf(atelier.Invalid, "%s[%d] has %.80q, which others have not", field, i, name).WithField(field)
			}
			columns[name] = append(columns[name], v)
		}
		if len(values) != len(columns) {
			return nil, atelier.Errorf(atelier.Invalid, "%s[%d] has %d values, others have %d", field, i, len(values), len(columns)).WithField(field)
		}
	}
	lists := map[string]jsontext.Value{}
	for name, values := range columns {
		lists[name] = listOf(values)
	}
	return m.fromColumns(lists, field)
}

// fromInputs reads tensors by their names, or that of the one input.
func (m *Model) fromInputs(raw jsontext.Value) ([]Tensor, error) {
	const field = "inputs"
	if raw.Kind() == jsontext.KindBeginObject {
		var columns map[string]jsontext.Value
		if err := decodeJSON(raw, &columns); err != nil {
			return nil, err
		}
		return m.fromColumns(columns, field)
	}
	specs := m.Engine.Signature().Inputs
	if len(specs) != 1 {
		return nil, atelier.Errorf(atelier.Invalid, "a tensor without a name came, but the model has %d inputs: %s", len(specs), names(specs)).
			WithRemedy(`Send {"inputs": {name: values}}.`).WithField(field)
	}
	t, err := parseData(raw, Datatype(specs[0].Type), nil, field)
	if err != nil {
		return nil, err
	}
	return []Tensor{t}, checkShape(t.Shape, &specs[0], "the shape of "+field, field)
}

// listOf makes a JSON list of values.
func listOf(values []jsontext.Value) jsontext.Value {
	b := jsontext.Value{'['}
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']')
}

// sameRows returns the first dimension of all outputs, and whether it is the same.
func sameRows(outputs []Tensor) (rows int64, same bool) {
	for i := range outputs {
		if len(outputs[i].Shape) == 0 || i > 0 && outputs[i].Shape[0] != rows {
			return 0, false
		}
		rows = outputs[i].Shape[0]
	}
	return rows, len(outputs) > 0
}

// appendRecords writes predictions as pandas' orient="records" does: an object for each row.
func (m *Model) appendRecords(outputs []Tensor, rows int64) (b []byte, err error) {
	specs := m.Engine.Signature().Outputs
	b = append(b, `{"predictions":[`...)
	for row := range rows {
		if row > 0 {
			b = append(b, ',')
		}
		for i := range outputs {
			b = append(quoted(append(b, "{,"[min(i, 1)]), specs[i].Name), ':')
			t := slice(&outputs[i], row, 1)
			if t.Shape = t.Shape[1:]; len(t.Shape) == 1 && t.Shape[0] == 1 {
				t.Shape = nil // a column of single values
			}
			if b, err = appendNested(b, &t, specs[i].Name); err != nil {
				return nil, err
			}
		}
		b = append(b, '}')
	}
	return append(b, "]}"...), nil
}
