// Package vault keeps the secrets of workspaces: the keys of their endpoints, and
// later the credentials of resources that users bring.
//
// A secret is sealed with AES-256-GCM under the hub's master key and bound to its
// workspace and name: a row that was copied to another place does not open. The
// master key lies in a file of its own, so that a copy of the database, a backup
// of it for example, discloses nothing. Whoever can read both can read all. The
// package decides no permission; whoever calls it has asked hub/access.
package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/durable"
)

// MaxSecret is the size of the largest secret in bytes.
const MaxSecret = 64 << 10

// keySize is that of AES-256.
const keySize = 32

// Vault seals and opens secrets. Its methods are safe for concurrent use.
type Vault struct {
	aead cipher.AEAD
	key  string // names the master key without telling it
}

// secret is a secret as it is stored. Its Name is the secret's.
type secret struct {
	atelier.Meta
	Key    string `json:"key"`    // the Vault.key that it is sealed with
	Sealed []byte `json:"sealed"` // nonce, ciphertext and tag
}

var secrets = store.Collection[secret]{
	Kind: "secret", Meta: func(v *secret) *atelier.Meta { return &v.Meta }, Quiet: true,
}

// Open returns the vault whose master key is in the file at path, in hex. Where
// there is no such file it makes a key and the file, readable by its owner only;
// when Open returns, the key is on disk. A file that others can read is refused.
func Open(fsys durable.FS, path string) (*Vault, error) {
	key, err := readKey(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		_, _ = rand.Read(key) // never fails since Go 1.24; it ends the program itself
		err = durable.WriteFile(fsys, path, []byte(hex.EncodeToString(key)+"\n"), 0o600)
	}
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "vault: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "vault: %w", err)
	}
	name := sha256.Sum256(append([]byte("atelier vault key\x00"), key...))
	return &Vault{aead: aead, key: hex.EncodeToString(name[:8])}, nil
}

func readKey(fsys durable.FS, path string) ([]byte, error) {
	info, err := fsys.Stat(path)
	if err != nil {
		return nil, durable.Explain(err, "read the vault's master key "+path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, atelier.Errorf(atelier.Conflict, "vault: the master key %s has mode %#o: others than its owner may use it", path, mode).
			WithRemedy("Run 'chmod 600 %s', and change the secrets of every workspace if somebody may have read it.", path)
	}
	text, err := durable.ReadFile(fsys, path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, atelier.Errorf(atelier.Corrupt, "vault: the master key %s is not %d bytes in hexadecimal digits", path, keySize).
			WithRemedy("Restore the file from a backup of the hub; without it the stored secrets are lost.")
	}
	return key, nil
}

// Put keeps plaintext under the name in the workspace, in place of what is there.
func (v *Vault) Put(tx store.Tx, workspace, name string, plaintext []byte) error {
	if name == "" {
		return atelier.Errorf(atelier.Invalid, "a secret needs a name").WithField("name")
	}
	if len(plaintext) > MaxSecret {
		return atelier.Errorf(atelier.TooLarge, "the secret %s has %d bytes, more than %d", name, len(plaintext), MaxSecret)
	}
	sealed := v.aead.Seal(nil, nil, plaintext, place(workspace, name))
	old, err := secrets.Find(tx, workspace, "", name)
	switch atelier.CodeOf(err) {
	case "":
		old.Key, old.Sealed = v.key, sealed
		_, err = secrets.Update(tx, workspace, old)
	case atelier.NotFound:
		_, err = secrets.Insert(tx, workspace, "", secret{Meta: atelier.Meta{Name: name}, Key: v.key, Sealed: sealed})
	}
	return err
}

// Get returns the secret with the name: NotFound where there is none, Corrupt
// where it was sealed with another master key or is not as it was stored.
func (v *Vault) Get(tx store.Tx, workspace, name string) ([]byte, error) {
	s, err := secrets.Find(tx, workspace, "", name)
	if err != nil {
		return nil, err
	}
	if s.Key != v.key {
		return nil, atelier.Errorf(atelier.Corrupt, "the secret %s was sealed with another master key (%.16s) than the hub's (%s)", name, s.Key, v.key).
			WithRemedy("Restore the master key that belongs to this database, or set the secret anew.")
	}
	plaintext, err := v.aead.Open(nil, nil, s.Sealed, place(workspace, name))
	if err != nil {
		return nil, atelier.Errorf(atelier.Corrupt, "the secret %s does not open: %w", name, err).
			WithRemedy("Set the secret anew, and find out who changed the database.")
	}
	return plaintext, nil
}

// Delete removes the secret with the name; NotFound where there is none.
func (v *Vault) Delete(tx store.Tx, workspace, name string) error {
	s, err := secrets.Find(tx, workspace, "", name)
	if err != nil {
		return err
	}
	return secrets.Delete(tx, workspace, s.ID, s.Revision)
}

// place is the additional data that binds a secret to where it belongs. Neither
// part can hold a NUL, which the store refuses.
func place(workspace, name string) []byte {
	return []byte("atelier secret 1\x00" + workspace + "\x00" + name)
}
