package vault_test

import (
	"bytes"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// FuzzOpen opens a vault whose key file holds anything. It is taken or refused as
// corrupt, never replaced: a new key would lose every secret.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"))
	f.Add([]byte("0011"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		disk := durabletest.NewDisk()
		if err := durable.WriteFile(disk, keyPath, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := vault.Open(disk, keyPath); err != nil && atelier.CodeOf(err) != atelier.Corrupt {
			t.Fatalf("code %s: %v", atelier.CodeOf(err), err)
		}
		if after, err := durable.ReadFile(disk, keyPath); err != nil || !bytes.Equal(after, text) {
			t.Fatalf("the key file was changed: %q, %v", after, err)
		}
	})
}
