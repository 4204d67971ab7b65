package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	atelier "github.com/atelier-edge/atelier"
)

// table is what people read.
type table struct {
	about [][]string // what the rows below belong to, line by line
	head  []string
	rows  [][]string
	note  string // a line below, such as what to do next where there is nothing
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (a *app) checkOutput() error {
	switch a.output {
	case "table", "json", "yaml":
		return nil
	}
	return errUsage{fmt.Errorf("output %q is none of table, json and yaml", a.output)}
}

// print writes v as the user asked for it: as JSON or YAML with the names of
// the REST API, or as a table.
func (a *app) print(v any, people func() table) error {
	switch a.output {
	case "json":
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		// Every JSON document is YAML; reading it as a node keeps the order of fields.
		var node yaml.Node
		if err := yaml.Unmarshal(b, &node); err != nil {
			return err
		}
		blockStyle(&node)
		enc := yaml.NewEncoder(a.out)
		enc.SetIndent(2)
		return enc.Encode(&node)
	}
	return people().write(a.out)
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

func (t table) write(w io.Writer) error {
	var b strings.Builder
	if len(t.about) > 0 {
		align(&b, t.about)
		if len(t.rows) > 0 || t.note != "" {
			b.WriteByte('\n')
		}
	}
	rows := t.rows
	if len(t.head) > 0 && len(t.rows) > 0 {
		rows = append([][]string{t.head}, t.rows...)
	}
	align(&b, rows)
	if t.note != "" {
		b.WriteString(t.note + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// align writes rows in columns, without spaces at the ends of lines.
func align(b *strings.Builder, rows [][]string) {
	var aligned strings.Builder
	tw := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	columns := 0
	for _, r := range rows {
		columns = max(columns, len(r))
	}
	for _, r := range rows {
		// A row with fewer cells than others would end their columns.
		cells := make([]string, columns)
		for i, c := range r {
			cells[i] = printable(c)
		}
		_, _ = fmt.Fprintln(tw, strings.Join(cells, "\t")) // to memory
	}
	_ = tw.Flush()
	for line := range strings.Lines(aligned.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// printable keeps what devices and strangers chose from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// firstLine returns the first line of a message; a script's output may follow it.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// say tells people something besides the answer, on standard error, so that
// standard output stays what was asked for.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintf(a.err, format+"\n", args...)
	}
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	switch {
	case d < 0:
		return "in " + short(-d)
	case d < 2*time.Second:
		return "now"
	}
	return short(d) + " ago"
}

func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// count writes "1 file" and "2 files".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func labelsOf(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, k := range sortedKeys(labels) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return strings.Join(pairs, ",")
}

func tensors(specs []atelier.TensorSpec) string {
	out := make([]string, 0, len(specs))
	for _, s := range specs {
		dims := make([]string, 0, len(s.Shape))
		for _, d := range s.Shape {
			if d < 0 {
				dims = append(dims, "?")
			} else {
				dims = append(dims, fmt.Sprint(d))
			}
		}
		out = append(out, fmt.Sprintf("%s %s[%s]", s.Name, s.Type, strings.Join(dims, ",")))
	}
	return strings.Join(out, ", ")
}
