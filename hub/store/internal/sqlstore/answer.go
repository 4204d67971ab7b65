package sqlstore

import (
	"encoding/json"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// Remember implements store.Tx.
func (t *tx) Remember(a store.Answer) error {
	if a.Key == "" || !storable(a.Actor, a.Key, a.Request) {
		return atelier.Errorf(atelier.Invalid, "the idempotency key %.80q is empty, no UTF-8 or longer than %d bytes", a.Key, maxKey).
			WithRemedy("Use a random string such as a UUID as Idempotency-Key.")
	}
	if len(a.Header) == 0 {
		a.Header = json.RawMessage("{}")
	}
	if a.Body == nil {
		a.Body = []byte{}
	}
	if a.Now.IsZero() {
		a.Now = t.now()
	}
	if _, err := t.exec("replace an answer", `DELETE FROM answer
		WHERE actor = $1 AND key = $2 AND (expires <= $3 OR status = 0 AND $4 <> 0)`,
		a.Actor, a.Key, a.Now.UnixMicro(), a.Status); err != nil {
		return err
	}
	n, err := t.exec("remember an answer", `INSERT INTO answer (actor, key, request, status, header, body, expires)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
		a.Actor, a.Key, a.Request, a.Status, string(a.Header), a.Body, a.Expires.UnixMicro())
	if err != nil {
		return err
	}
	if n == 0 {
		return atelier.Errorf(atelier.Exists, "the idempotency key %.80q was used already", a.Key).
			WithRemedy("Use a new key for a new request.")
	}
	return nil
}

// Recall implements store.Tx.
func (t *tx) Recall(actor, key string, now time.Time) (store.Answer, error) {
	var a store.Answer
	found := false
	if storable(actor, key) {
		err := t.query("recall an answer", func(scan func(...any) error) error {
			found = true
			var header string
			var expires int64
			if err := scan(&a.Actor, &a.Key, &a.Request, &a.Status, &header, &a.Body, &expires); err != nil {
				return err
			}
			a.Header, a.Expires = json.RawMessage(header), fromMicros(expires)
			return nil
		}, "SELECT actor, key, request, status, header, body, expires FROM answer WHERE actor = $1 AND key = $2 AND expires > $3",
			actor, key, now.UnixMicro())
		if err != nil {
			return store.Answer{}, err
		}
	}
	if !found {
		return store.Answer{}, notFound("answer", key)
	}
	return a, nil
}

// Forget implements store.Tx.
func (t *tx) Forget(now time.Time) error {
	_, err := t.exec("forget answers", "DELETE FROM answer WHERE expires <= $1", now.UnixMicro())
	return err
}
