package enrol

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// TokenPrefix begins the secret of every join token, so that people and secret
// scanners recognise it.
const TokenPrefix = "atj_"

// Limits and defaults of join tokens.
const (
	DefaultTokenLife = 24 * time.Hour
	maxTokenLife     = 366 * 24 * time.Hour
	maxTokenUses     = 100_000
)

// NewToken says what a join token shall allow.
type NewToken struct {
	Name   string         // optional; unique in the workspace
	Life   time.Duration  // 0 is DefaultTokenLife
	Uses   int            // 0 is 1
	Labels atelier.Labels // given to each device that joins with it
}

// CreateToken makes a join token for the workspace with the id. The secret is
// returned this once; only its hash is kept.
func (s *Service) CreateToken(ctx context.Context, workspace string, n NewToken) (t atelier.JoinToken, secret string, err error) {
	if n.Life == 0 {
		n.Life = DefaultTokenLife
	}
	if n.Uses == 0 {
		n.Uses = 1
	}
	if n.Name != "" {
		if err := atelier.CheckName("join token", n.Name); err != nil {
			return t, "", err
		}
	}
	if n.Life < time.Minute || n.Life > maxTokenLife {
		return t, "", atelier.Errorf(atelier.Invalid, "the join token shall last %s, expected between 1m and %s", n.Life, maxTokenLife).WithField("expires_in")
	}
	if n.Uses < 1 || n.Uses > maxTokenUses {
		return t, "", atelier.Errorf(atelier.Invalid, "%d devices shall join with the token, expected 1 to %d", n.Uses, maxTokenUses).WithField("uses")
	}
	if err := n.Labels.Check(); err != nil {
		return t, "", err
	}
	secret = TokenPrefix + strings.ToLower(rand.Text())
	t = atelier.JoinToken{
		Meta:    atelier.Meta{ID: atelier.NewID(), Name: n.Name},
		Expires: s.now().Add(n.Life).UTC(), Uses: n.Uses, Labels: n.Labels, Hash: hashOf(secret),
	}
	err = s.store.Update(ctx, access.By(ctx), func(tx store.Tx) (err error) {
		t, err = catalog.JoinTokens.Insert(tx, workspace, "", t)
		return err
	})
	t.Hash = ""
	return t, secret, err
}

// RevokeToken removes the join token that ref, a name or an id, names. Devices
// that joined with it stay.
func (s *Service) RevokeToken(ctx context.Context, workspace, ref string, revision int64) error {
	return s.store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
		t, err := catalog.JoinTokens.Resolve(tx, workspace, "", ref)
		if err != nil {
			return err
		}
		return catalog.JoinTokens.Delete(tx, workspace, t.ID, revision)
	})
}

// tokenOf returns the join token with the secret, and its workspace.
func (s *Service) tokenOf(tx store.Tx, secret string) (atelier.JoinToken, string, error) {
	unknown := atelier.Errorf(atelier.Unauthenticated, "the join token is not one of this hub's, or was revoked").
		WithField("token").WithRemedy("Make a new one with 'atelier device token'.")
	if !strings.HasPrefix(secret, TokenPrefix) || len(secret) > 256 {
		return atelier.JoinToken{}, "", unknown
	}
	found, err := tx.Referrers(catalog.RelSecret, hashOf(secret), 1)
	if err != nil {
		return atelier.JoinToken{}, "", err
	}
	if len(found) == 0 {
		return atelier.JoinToken{}, "", unknown
	}
	t, err := catalog.JoinTokens.Get(tx, found[0].Workspace, found[0].ID)
	if err != nil {
		return t, "", err
	}
	if !s.now().Before(t.Expires) {
		return t, "", atelier.Errorf(atelier.Forbidden, "the join token expired at %s", t.Expires.Format(time.RFC3339)).
			WithField("token").WithRemedy("Make a new one with 'atelier device token'.")
	}
	return t, found[0].Workspace, nil
}

func hashOf(secret string) string { return atelier.DigestOf([]byte(secret)).Hex() }
