package durable

import (
	"encoding/json"

	atelier "github.com/atelier-edge/atelier"
)

// A program is updated, and sometimes taken back, on top of what another version
// of it has stored. So each JSON file says in which form it is: a number, 1 where
// there is none. Fields may be added to a form, and older programs ignore them;
// what an older program must not ignore makes a new form, which it refuses.

// Encode returns v, a struct, as JSON with the number of its form as the first field.
func Encode(format int, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode %T: %w", v, err)
	}
	head, err := json.Marshal(struct {
		Format int `json:"format"`
	}{format})
	if err != nil || len(b) < 2 || b[0] != '{' {
		return nil, atelier.Errorf(atelier.Internal, "encode %T: it is no JSON object: %w", v, err)
	}
	if head[len(head)-1] = ','; b[1] == '}' {
		head = head[:len(head)-1]
	}
	return append(head, b[1:]...), nil
}

// Decode reads what Encode wrote, in any form up to newest, which v has fields
// for. Unsupported where the form is newer, Corrupt where b cannot be read. path
// tells where it came from.
func Decode(b []byte, path string, newest int, v any) error {
	var form struct {
		Format int `json:"format"`
	}
	err := json.Unmarshal(b, &form)
	if err == nil && form.Format > newest {
		return atelier.Errorf(atelier.Unsupported, "%s has format %d, this program reads formats up to %d", path, form.Format, newest).
			WithRemedy("A newer version wrote it: run that one, or restore the file as it was before the update.")
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return atelier.Errorf(atelier.Corrupt, "%s cannot be read: %w", path, err)
	}
	return nil
}
