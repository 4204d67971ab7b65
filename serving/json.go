package serving

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	atelier "github.com/atelier-edge/atelier"
)

// decodeJSON reads exactly one JSON value into v. It refuses fields that v does
// not have, and names that come twice. The error says what is wrong and where.
func decodeJSON(data []byte, v any) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(data))
	err := json.UnmarshalDecode(d, v, json.RejectUnknownMembers(true))
	if err == nil {
		if d.PeekKind() == jsontext.KindInvalid && len(bytes.TrimSpace(data[d.InputOffset():])) == 0 {
			return nil
		}
		return atelier.Errorf(atelier.Invalid, "the body goes on after its JSON ends, at byte %d", d.InputOffset())
	}
	var semantic *json.SemanticError
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, io.EOF):
		return atelier.Errorf(atelier.Invalid, "the body is empty, a JSON object was expected")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return atelier.Errorf(atelier.Invalid, "the body ends in the middle of its JSON, after %d bytes", len(data))
	case errors.As(err, &syntax):
		return notJSON(data, syntax)
	case errors.As(err, &semantic):
		return misfit(semantic)
	}
	return atelier.Errorf(atelier.Invalid, "the body cannot be read: %w", err)
}

func notJSON(data []byte, err *jsontext.SyntacticError) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		field := fieldOf(err.JSONPointer)
		return atelier.Errorf(atelier.Invalid, "the body has the field %s twice", field).WithField(field)
	}
	at := max(0, min(int(err.ByteOffset), len(data)))
	near := data[at:min(at+20, len(data))]
	e := atelier.Errorf(atelier.Invalid, "the body is not JSON: %v at byte %d, near %.20q", err.Err, at, near)
	if bytes.HasPrefix(near, []byte("N")) || bytes.HasPrefix(near, []byte("I")) {
		e = e.WithRemedy("JSON has no NaN and no infinity; send such tensors in binary form.")
	}
	return e
}

// misfit tells of a value that stands where another kind of value belongs.
func misfit(err *json.SemanticError) error {
	field := fieldOf(err.JSONPointer)
	if errors.Is(err, json.ErrUnknownName) {
		return atelier.Errorf(atelier.Invalid, "the body has a field %s that is not known here", field).WithField(field)
	}
	where := field
	if where == "" {
		where = "the body"
	}
	return atelier.Errorf(atelier.Invalid, "%s is %s, %s was expected", where, kindOf(err), typeInWords(err.GoType)).WithField(field)
}

// kindOf says in words what came.
func kindOf(err *json.SemanticError) string {
	switch err.JSONKind {
	case jsontext.KindBeginObject:
		return "an object"
	case jsontext.KindBeginArray:
		return "a list"
	case jsontext.KindString:
		return "a string"
	case jsontext.KindNull:
		return "null"
	case jsontext.KindTrue, jsontext.KindFalse:
		return "a truth value"
	case jsontext.KindNumber:
		if len(err.JSONValue) > 0 {
			return "the number " + clip(string(err.JSONValue))
		}
		return "a number"
	}
	return "something else"
}

// typeInWords says in words what a Go type takes.
func typeInWords(t reflect.Type) string {
	if t == nil {
		return "something else"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int64:
		return "a whole number"
	}
	return "a " + t.Kind().String()
}

// fieldOf writes a JSON pointer the way errors name fields: inputs[0].shape.
func fieldOf(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		switch {
		case token != "" && strings.Trim(token, "0123456789") == "":
			b.WriteString("[" + token + "]")
		case b.Len() > 0:
			b.WriteString("." + token)
		default:
			b.WriteString(token)
		}
	}
	return clip(b.String())
}

// clip shortens what came from outside, for messages.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// quoted appends s as a JSON string.
func quoted(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // its error tells of bytes that are no UTF-8, which it has replaced
	return b
}
