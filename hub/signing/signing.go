// Package signing signs the container images of workspaces, and says what they are made of.
//
// Each workspace has a key for images, made when the first one is signed: its private half
// lies in the vault, its public half in the delegation that devices pin. What it signs is
// a statement about the digest of an image's manifest, which devices verify offline (see
// trust.VerifyImage). The same statement lies beside the image in the registry, as a
// Sigstore bundle that refers to it; and so does a signature under the tag at which older
// tools look: cosign and whatever verifies with its library take both.
//
// Beside an image lie further what it contains, in SPDX, and how it came to be, in SLSA's
// terms, each by itself and in a signed statement.
//
// The package trusts its callers to have asked access.Authorize; it knows no HTTP.
package signing

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/vault"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Authority is what this package needs of authority.Authority.
type Authority interface {
	ImageKeys(workspace string) []trust.PublicKey
	DelegateImages(workspace string, keys []trust.PublicKey) (changed bool, err error)
}

// Config says what a Service works with. Fields are required unless they say otherwise.
type Config struct {
	Store     store.Store
	Vault     *vault.Vault
	Authority Authority
	Images    *images.Registry
	// Host is the HOST:PORT that begins the hub's images' names; signatures of the older
	// form hold it.
	Host string
	// Delegated is called with the id of each workspace whose devices have a newer
	// delegation to receive. It must not block for long.
	Delegated func(workspace string)
	Log       *slog.Logger
	Now       func() time.Time // nil for time.Now
}

// Service signs images. Its methods are safe for concurrent use.
type Service struct {
	c   Config
	now func() time.Time
	// mu lets one change of keys or one signature happen at a time: both read and then write.
	mu sync.Mutex
}

// New returns a Service. Keys that a crash kept from being delegated, or from being
// taken out of a delegation, are so when New returns.
func New(ctx context.Context, c Config) (*Service, error) {
	s := &Service{c: c, now: c.Now}
	if s.now == nil {
		s.now = time.Now
	}
	var workspaces []string
	err := c.Store.View(ctx, func(tx store.Tx) error {
		workspaces = nil
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			workspaces = append(workspaces, w.ID)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for _, w := range workspaces {
		held, err := s.keys(ctx, w)
		if err != nil {
			// One workspace's damaged secret must not keep the hub from the others: it
			// signs nothing, and says why when it is asked to.
			c.Log.Error("the keys of a workspace's images cannot be read", slog.String("workspace", w), slog.Any("error", err))
			continue
		}
		if err := s.delegate(w, held); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// secretName is that of the keys in the vault; those of endpoints are named otherwise.
const secretName = "image-keys"

// keyring is the form in which a workspace's keys lie in the vault.
type keyring struct {
	Format int       `json:"format"`          // 1
	Key    string    `json:"key"`             // that signs, PEM
	Made   time.Time `json:"made,omitzero"`   // the key that signs
	Older  []older   `json:"older,omitempty"` // those that are trusted still, the newest first
}

const keyringFormat = 1

// older is a key that was replaced. Its private half is gone.
type older struct {
	Key  trust.PublicKey `json:"key"`
	Made time.Time       `json:"made"`
}

// keys are a keyring that was read; the zero value is one without keys.
type keys struct {
	ring   keyring
	signer trust.Signer
}

func (k keys) none() bool { return k.ring.Key == "" }

// public returns the keys that are trusted, first the one that signs.
func (k keys) public() []trust.PublicKey {
	if k.none() {
		return nil
	}
	all := []trust.PublicKey{k.signer.Public()}
	for _, o := range k.ring.Older {
		all = append(all, o.Key)
	}
	return all
}

// keys reads the workspace's keys from the vault.
func (s *Service) keys(ctx context.Context, workspace string) (k keys, err error) {
	var b []byte
	err = s.c.Store.View(ctx, func(tx store.Tx) (err error) {
		b, err = s.c.Vault.Get(tx, workspace, secretName)
		return err
	})
	if atelier.CodeOf(err) == atelier.NotFound {
		return keys{}, nil
	}
	if err != nil {
		return keys{}, err
	}
	return parseKeys(b)
}

func parseKeys(b []byte) (k keys, err error) {
	if err := json.Unmarshal(b, &k.ring); err != nil {
		return keys{}, atelier.Errorf(atelier.Corrupt, "the keys of images cannot be read: %w", err)
	}
	if k.ring.Format != keyringFormat {
		return keys{}, atelier.Errorf(atelier.Unsupported, "the keys of images are in form %d, this hub reads %d", k.ring.Format, keyringFormat).
			WithRemedy("A newer hub wrote them: run that one.")
	}
	if len(k.ring.Older) >= trust.MaxKeys {
		return keys{}, atelier.Errorf(atelier.Corrupt, "there are %d older keys of images, at most %d can be", len(k.ring.Older), trust.MaxKeys-1)
	}
	private, err := trust.ParseKey([]byte(k.ring.Key))
	if err != nil {
		return keys{}, atelier.Errorf(atelier.Corrupt, "the key of images cannot be read: %w", err)
	}
	k.signer, err = trust.NewSigner(private)
	return k, err
}

// replace makes a new key, which signs from then on. The one before stays trusted unless
// revoke; so do those before it.
func (s *Service) replace(ctx context.Context, workspace string, before keys, revoke bool) (keys, error) {
	private, err := trust.NewImageKey()
	if err != nil {
		return keys{}, err
	}
	pem, err := trust.EncodeKey(private)
	if err != nil {
		return keys{}, err
	}
	next := keys{ring: keyring{Format: keyringFormat, Key: string(pem), Made: s.now().UTC()}}
	if next.signer, err = trust.NewSigner(private); err != nil {
		return keys{}, err
	}
	if !revoke && !before.none() {
		next.ring.Older = append([]older{{before.signer.Public(), before.ring.Made}}, before.ring.Older...)
	}
	if len(next.public()) > trust.MaxKeys {
		return keys{}, atelier.Errorf(atelier.Conflict, "%d keys are trusted for the workspace's images, as many as can be", trust.MaxKeys).
			WithRemedy("Rotate with --revoke, which ends trust in all of them, and sign again the images that are in use.")
	}
	b, err := json.Marshal(next.ring)
	if err != nil {
		return keys{}, atelier.Errorf(atelier.Internal, "encode the keys of images: %w", err)
	}
	err = s.c.Store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		if _, err := catalog.Workspaces.Get(tx, "", workspace); err != nil {
			return err
		}
		return s.c.Vault.Put(tx, workspace, secretName, b)
	})
	if err != nil {
		return keys{}, err
	}
	return next, s.delegate(workspace, next)
}

// delegate lets devices trust what is in the vault: first a key is safe, then it is
// trusted, then it signs.
func (s *Service) delegate(workspace string, k keys) error {
	if k.none() && len(s.c.Authority.ImageKeys(workspace)) == 0 {
		return nil
	}
	changed, err := s.c.Authority.DelegateImages(workspace, k.public())
	if changed && s.c.Delegated != nil {
		s.c.Delegated(workspace)
	}
	return err
}

// current returns the workspace's keys, of which there is one at least.
func (s *Service) current(ctx context.Context, workspace string) (keys, error) {
	k, err := s.keys(ctx, workspace)
	if err != nil {
		return k, err
	}
	if k.none() {
		return s.replace(ctx, workspace, k, false)
	}
	return k, s.delegate(workspace, k)
}

// Keys returns the public keys whose signatures of the workspace's images are trusted,
// first the one that signs; none while nothing was signed.
func (s *Service) Keys(ctx context.Context, workspace string) ([]atelier.SigningKey, error) {
	k, err := s.keys(ctx, workspace)
	if err != nil {
		return nil, err
	}
	return k.shown(), nil
}

func (k keys) shown() []atelier.SigningKey {
	list := []atelier.SigningKey{}
	for i, key := range k.public() {
		shown := atelier.SigningKey{ID: key.ID(), Signs: i == 0, Made: k.ring.Made, PEM: string(key.PEM())}
		if i > 0 {
			shown.Made = k.ring.Older[i-1].Made
		}
		list = append(list, shown)
	}
	return list
}

// Rotate makes a new key for the workspace's images; the first one where there is none.
// What older keys signed stays trusted, unless revoke: then devices take only what the
// new key signs, as soon as they hear of it, and images in use are to be signed and deployed again.
// The private half of the older key is gone either way. It returns the keys as Keys does.
func (s *Service) Rotate(ctx context.Context, workspace string, revoke bool) ([]atelier.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, err := s.keys(ctx, workspace)
	if err != nil && !revoke { // what cannot be read can be replaced, where nothing of it is to stay
		return nil, err
	}
	k, err := s.replace(ctx, workspace, before, revoke)
	if err != nil {
		return nil, err
	}
	return k.shown(), nil
}

// Forget deletes the keys of a workspace that was deleted.
func (s *Service) Forget(ctx context.Context, workspace string) error {
	err := s.c.Store.Update(ctx, access.By(ctx), func(tx store.Tx) error { return s.c.Vault.Delete(tx, workspace, secretName) })
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil
	}
	return err
}

// Envelope returns what a desired state that names the image carries as its signature,
// for trust.VerifyImage; nil where the image is not signed, or only by a key that was revoked.
func (s *Service) Envelope(ctx context.Context, workspace, repository string, ref images.Reference) ([]byte, error) {
	img, err := s.c.Images.Image(ctx, workspace, repository, ref)
	if err != nil || img.Signature == nil || !s.trusts(workspace, img.Signature.Key) {
		return nil, err
	}
	return img.Envelope, nil
}

// Judge sets whether the signatures of images are trusted.
func (s *Service) Judge(workspace string, list ...*atelier.Image) {
	for _, img := range list {
		if img.Signature != nil {
			judged := *img.Signature
			judged.Trusted = s.trusts(workspace, judged.Key)
			img.Signature = &judged
		}
	}
}

func (s *Service) trusts(workspace, key string) bool {
	_, known := trust.NewKeySet(s.c.Authority.ImageKeys(workspace)...)[key]
	return known
}
