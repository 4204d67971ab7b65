package storetest

import (
	"encoding/json"
	"testing"

	"github.com/atelier-edge/atelier/hub/store"
)

// BenchmarkUpdate measures synced single inserts, by one caller and by many at
// once, and closes s.
func BenchmarkUpdate(b *testing.B, s store.Store) {
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	insert := func() {
		err := s.Update(b.Context(), by, func(tx store.Tx) error {
			_, err := tx.Insert(store.Resource{Kind: "thing", Workspace: "w", Doc: json.RawMessage(`{"a":1}`)})
			return err
		})
		if err != nil {
			b.Error(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			insert()
		}
	})
	b.Run("many", func(b *testing.B) {
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				insert()
			}
		})
	})
}
