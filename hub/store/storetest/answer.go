package storetest

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// noon is the clock of the tests of answers.
var noon = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func testAnswers(t *testing.T, s store.Store) {
	answer := store.Answer{
		Actor: "token:a", Key: "k", Request: "hash", Status: 201,
		Header: json.RawMessage(`{"Etag":["\"1\""]}`), Body: []byte{0, 0xff, '{', '}'},
		Now: noon, Expires: noon.Add(time.Hour),
	}
	update(t, s, func(tx store.Tx) error { return tx.Remember(answer) })
	view(t, s, func(tx store.Tx) error {
		want := answer
		want.Now = time.Time{}
		got, err := tx.Recall("token:a", "k", noon.Add(time.Hour-time.Microsecond))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Recall = %+v, %v\nwant %+v", got, err, want)
		}
		_, err = tx.Recall("token:b", "k", noon)
		wantCode(t, "Recall of another caller", err, atelier.NotFound)
		_, err = tx.Recall("token:a", "l", noon)
		wantCode(t, "Recall of another key", err, atelier.NotFound)
		_, err = tx.Recall("token:a", "k", noon.Add(time.Hour))
		wantCode(t, "Recall when expired", err, atelier.NotFound)
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		wantCode(t, "Remember a used key", tx.Remember(answer), atelier.Exists)
		wantCode(t, "Remember no key", tx.Remember(store.Answer{Actor: "a"}), atelier.Invalid)
		late := answer
		late.Now, late.Expires, late.Body = answer.Expires, answer.Expires.Add(time.Hour), nil
		if err := tx.Remember(late); err != nil {
			t.Errorf("Remember in place of what has expired: %v", err)
		}
		if got, err := tx.Recall("token:a", "k", late.Now); err != nil || len(got.Body) != 0 || !got.Expires.Equal(late.Expires) {
			t.Errorf("Recall = %+v, %v", got, err)
		}
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		other := answer
		other.Actor = "token:b" // expires an hour earlier than that of a
		if err := tx.Remember(other); err != nil {
			return err
		}
		if err := tx.Forget(noon.Add(time.Hour)); err != nil {
			return err
		}
		_, err := tx.Recall("token:b", "k", noon)
		wantCode(t, "Recall what was forgotten", err, atelier.NotFound)
		_, err = tx.Recall("token:a", "k", noon)
		return err
	})
}

func testReservations(t *testing.T, s store.Store) {
	reserved := store.Answer{Actor: "a", Key: "k", Request: "hash", Now: noon, Expires: noon.Add(time.Hour)}
	answered, released := reserved, reserved
	answered.Status, answered.Body = 200, []byte("done")
	released.Status, released.Expires = 500, noon
	update(t, s, func(tx store.Tx) error {
		if err := tx.Remember(reserved); err != nil {
			return err
		}
		wantCode(t, "reserve twice", tx.Remember(reserved), atelier.Exists)
		if got, err := tx.Recall("a", "k", noon); err != nil || got.Status != 0 {
			t.Errorf("a reserved key: %+v, %v", got, err)
		}
		if err := tx.Remember(released); err != nil {
			return err
		}
		_, err := tx.Recall("a", "k", noon)
		wantCode(t, "Recall a key that was let go", err, atelier.NotFound)
		if err := tx.Remember(reserved); err != nil {
			return err
		}
		if err := tx.Remember(answered); err != nil {
			return err
		}
		wantCode(t, "reserve an answered key", tx.Remember(reserved), atelier.Exists)
		if got, err := tx.Recall("a", "k", noon); err != nil || string(got.Body) != "done" {
			t.Errorf("an answered key: %+v, %v", got, err)
		}
		return nil
	})
}
