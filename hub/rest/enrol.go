package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/enrol"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/wire"
)

const tagEnrolment = "Enrolment"

// Envelope is the form that a DSSE envelope has in JSON.
type Envelope struct {
	_           struct{}            `json:"-" additionalProperties:"true"`
	Payload     string              `json:"payload" doc:"Base64 of what is signed"`
	PayloadType string              `json:"payloadType" doc:"What the payload is"`
	Signatures  []EnvelopeSignature `json:"signatures" nullable:"false"`
}

// EnvelopeSignature is one signature of an Envelope.
type EnvelopeSignature struct {
	_     struct{} `json:"-" additionalProperties:"true"`
	KeyID string   `json:"keyid,omitempty" doc:"SHA-256 of the key's SubjectPublicKeyInfo, hex"`
	Sig   string   `json:"sig" doc:"Base64 of the signature"`
}

// What devices send may have fields that this hub does not know: agents are
// updated before their hub as well as after it.
type (
	enrolBody struct {
		_ struct{} `json:"-" additionalProperties:"true"`
		wire.EnrolRequest
	}
	challengeBody struct {
		_ struct{} `json:"-" additionalProperties:"true"`
		wire.ChallengeRequest
	}
	renewBody struct {
		_ struct{} `json:"-" additionalProperties:"true"`
		wire.RenewRequest
	}
)

type newJoinToken struct {
	Name      string         `json:"name,omitempty" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	ExpiresIn string         `json:"expires_in,omitempty" maxLength:"32" example:"24h" doc:"How long it lets devices join, such as 24h or 30m; 24h without it"`
	Uses      int            `json:"uses,omitempty" minimum:"0" doc:"How many devices may join with it; 1 without it"`
	Labels    atelier.Labels `json:"labels,omitempty" doc:"Given to each device that joins with it"`
}

// IssuedJoinToken is a join token at the one time that its secret is shown.
type IssuedJoinToken struct {
	atelier.JoinToken
	Secret string `json:"secret" doc:"What a device shows to join; nobody can read it again"`
}

func (s *server) registerEnrol(api huma.API) {
	s.registerJoinTokens(api)
	s.registerKeys(api)
	register(s, api, operation{
		ID: "enrol-device", Method: http.MethodPost, Path: "/v1/enrol", Tag: tagEnrolment, Public: true,
		Summary:     "Join as a device",
		Description: "Exchanges a join token and a certificate signing request for a certificate and everything else that a device needs. To ask again with the same key and token gives the same device.",
		Errors:      []atelier.Code{atelier.Unauthenticated, atelier.Forbidden, atelier.Exists},
	}, func(ctx context.Context, in *struct{ Body enrolBody }) (*answer[wire.Enrolment], error) {
		e, err := s.enrol.Join(ctx, in.Body.EnrolRequest)
		return &answer[wire.Enrolment]{e}, err
	})
	register(s, api, operation{
		ID: "challenge-device", Method: http.MethodPost, Path: "/v1/renew/challenge", Tag: tagEnrolment, Public: true,
		Summary: "Begin to renew a device's certificate", Description: "Answers for any id: it tells nothing of which devices there are.",
	}, func(_ context.Context, in *struct{ Body challengeBody }) (*answer[wire.Challenge], error) {
		c, err := s.enrol.Challenge(in.Body.Device)
		return &answer[wire.Challenge]{c}, err
	})
	register(s, api, operation{
		ID: "renew-device", Method: http.MethodPost, Path: "/v1/renew", Tag: tagEnrolment, Public: true,
		Summary:     "Renew a device's certificate",
		Description: "By proof of the key that it joined with: an envelope around the challenge, signed by that key. A certificate that has expired is renewed too.",
		Errors:      []atelier.Code{atelier.Unauthenticated, atelier.Forbidden, atelier.Exhausted},
	}, func(ctx context.Context, in *struct{ Body renewBody }) (*answer[wire.Renewal], error) {
		r, err := s.enrol.Renew(ctx, in.Body.RenewRequest)
		return &answer[wire.Renewal]{r}, err
	})
	register(s, api, operation{
		ID: "get-revocation-list", Method: http.MethodGet, Path: "/v1/crl", Tag: tagEnrolment, Public: true,
		Summary:     "Get the list of revoked certificates",
		Description: "Signed by the authority and good for 30 days; for brokers outside the hub, which cannot ask it about a device.",
		Reply:       "application/x-pem-file",
	}, func(ctx context.Context, _ *struct{}) (*stream, error) {
		list, err := s.enrol.RevocationList(ctx)
		if err != nil {
			return nil, err
		}
		return &stream{func(c huma.Context) {
			c.SetHeader("Content-Type", "application/x-pem-file")
			_, _ = c.BodyWriter().Write(list) // a caller that has gone is no failure of ours
		}}, nil
	})
}

func (s *server) registerJoinTokens(api huma.API) {
	kind, path := catalog.JoinTokens.Kind, inWorkspace+"/join-tokens"
	register(s, api, operation{
		ID: "list-join-tokens", Method: http.MethodGet, Path: path, Tag: tagEnrolment, Summary: "List join tokens",
		Verb: access.JoinTokenList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
	}) (*list[atelier.JoinToken], error) {
		return listAs(ctx, s, catalog.JoinTokens, store.Query{Workspace: workspaceOf(ctx)}, in.Paging,
			func(t atelier.JoinToken) atelier.JoinToken {
				t.Hash = ""
				return t
			})
	})
	register(s, api, operation{
		ID: "create-join-token", Method: http.MethodPost, Path: path, Tag: tagEnrolment, Status: http.StatusCreated,
		Summary: "Make a token with which devices join", Description: "The answer holds its secret, which is shown this once.",
		Verb: access.JoinTokenCreate, Kind: kind, Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body newJoinToken
	}) (*resource[IssuedJoinToken], error) {
		n := enrol.NewToken{Name: in.Body.Name, Uses: in.Body.Uses, Labels: in.Body.Labels}
		if in.Body.ExpiresIn != "" {
			life, err := time.ParseDuration(in.Body.ExpiresIn)
			if err != nil || life <= 0 {
				return nil, atelier.Errorf(atelier.Invalid, "%q is no length of time", in.Body.ExpiresIn).
					WithField("expires_in").WithRemedy("Write it in hours or minutes, such as 24h or 30m.")
			}
			n.Life = life
		}
		t, secret, err := s.enrol.CreateToken(ctx, workspaceOf(ctx), n)
		return resourceOf(IssuedJoinToken{t, secret}, err, func(v *IssuedJoinToken) *atelier.Meta { return &v.Meta })
	})
	register(s, api, operation{
		ID: "revoke-join-token", Method: http.MethodDelete, Path: path + "/{token}", Tag: tagEnrolment,
		Summary: "Revoke a join token", Description: "No device joins with it from now on; those that did stay.",
		Verb: access.JoinTokenRevoke, Kind: kind, Object: "token", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Token string `path:"token" maxLength:"63" doc:"Name or id of the join token"`
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.enrol.RevokeToken(ctx, workspaceOf(ctx), in.Token, revision)
	})
}

func (s *server) registerKeys(api huma.API) {
	register(s, api, operation{
		ID: "rotate-state-key", Method: http.MethodPost, Path: inWorkspace + "/keys/rotate", Tag: tagEnrolment,
		Summary:     "Give a workspace a new key for desired states",
		Description: "Devices accept nothing more that the old key signs once they have heard of the new one: at once where they are connected.",
		Verb:        access.WorkspaceRotateKey, Kind: "workspace",
	}, func(ctx context.Context, _ *WorkspaceParam) (*empty, error) {
		return nil, s.enrol.RotateStateKey(ctx, workspaceOf(ctx))
	})
	register(s, api, operation{
		ID: "rotate-root-key", Method: http.MethodPost, Path: "/v1/keys/rotate", Tag: tagEnrolment,
		Summary:     "Give the hub a new root key",
		Description: "The root delegates the keys of the workspaces. Devices follow from the old root to the new one.",
		Verb:        access.HubRotateRoot, Kind: "hub",
	}, func(ctx context.Context, _ *struct{}) (*empty, error) {
		return nil, s.enrol.RotateRoot(ctx)
	})
}
