package atelier

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// constants returns the values of the string constants of a type in a file of
// this package, so that tests see those that somebody forgot to list.
func constants(t *testing.T, file, typ string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, decl := range f.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			v := spec.(*ast.ValueSpec)
			if id, ok := v.Type.(*ast.Ident); !ok || id.Name != typ {
				continue
			}
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, s)
		}
	}
	if len(values) == 0 {
		t.Fatalf("no constants of type %s in %s", typ, file)
	}
	return values
}

func TestEveryReasonIsDocumented(t *testing.T) {
	t.Parallel()
	docs, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	reasons := constants(t, "reason.go", "Reason")
	for _, r := range reasons {
		doc, ok := Reason(r).Doc()
		if !ok || doc.Meaning == "" {
			t.Errorf("reason %s has no entry in reasonDocs", r)
		}
		row := fmt.Sprintf("| %s | %s | %s |", r, doc.Meaning, doc.Remedy)
		if !strings.Contains(string(docs), row) {
			t.Errorf("docs/reasons.md lacks the row\n%s", row)
		}
	}
	if len(reasons) != len(reasonDocs) {
		t.Errorf("%d reasons, but %d entries in reasonDocs", len(reasons), len(reasonDocs))
	}
}

func TestEveryCodeHasAStatus(t *testing.T) {
	t.Parallel()
	codes := constants(t, "errors.go", "Code")
	for _, c := range codes {
		if _, ok := httpStatus[Code(c)]; !ok {
			t.Errorf("code %s has no HTTP status", c)
		}
	}
	if Code("nonsense").HTTPStatus() != 500 {
		t.Error("an unknown code is not 500")
	}
}

func TestWhyAlwaysHasAReason(t *testing.T) {
	t.Parallel()
	for _, w := range []Why{{}, Because(ReasonNoSpace, "needs 812 MB, 455 MB free"), Because(ReasonAsDesired, "").WithRemedy("none")} {
		b, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var back Why
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if back.Reason() == "" || back.Reason() != w.Reason() || back.Message() != w.Message() || back.Remedy() != w.Remedy() {
			t.Errorf("%s came back as %+v", b, back)
		}
	}
	var newer Why
	if err := json.Unmarshal([]byte(`{"reason":"FromTheFuture","message":"m"}`), &newer); err != nil || newer.Reason() != "FromTheFuture" {
		t.Errorf("a reason of a newer peer came as %q, %v", newer.Reason(), err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	err := fmt.Errorf("around: %w", Errorf(NoSpace, "disk: %w", cause).WithRemedy("free %d MB", 7).WithField("f"))
	if CodeOf(err) != NoSpace || !errors.Is(err, cause) {
		t.Errorf("%v has code %s", err, CodeOf(err))
	}
	if CodeOf(nil) != "" || CodeOf(cause) != Internal {
		t.Error("CodeOf(nil) or of an untyped error is wrong")
	}
}
