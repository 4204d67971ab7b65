package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/store"
)

type newToken struct {
	Name      string     `json:"name" doc:"1 to 63 characters of a-z, 0-9, '-', '_' and '.'"`
	Role      string     `json:"role" enum:"admin,viewer,builder" doc:"admin does everything, viewer reads, builder builds environments"`
	Workspace string     `json:"workspace,omitempty" maxLength:"63" doc:"Name or id of the only workspace that it is good for; all without it"`
	Expires   *time.Time `json:"expires,omitempty" doc:"When it ends; never without it"`
}

// Token is an access token as it is shown.
type Token struct {
	atelier.Meta
	Role      string     `json:"role"`
	Workspace string     `json:"workspace,omitempty" doc:"Id of the only workspace that it is good for"`
	Expires   *time.Time `json:"expires,omitempty"`
}

// IssuedToken is an access token at the one time that its secret is shown.
type IssuedToken struct {
	Token
	Secret string `json:"secret" doc:"The token itself; nobody can read it again"`
}

func tokenOf(t access.AccessToken) Token { return Token{t.Meta, t.Role, t.Workspace, t.Expires} }

func (s *server) registerTokens(api huma.API) {
	const tag = "Access"
	kind := access.Tokens.Kind
	register(s, api, operation{
		ID: "list-tokens", Method: http.MethodGet, Path: "/v1/tokens", Tag: tag, Summary: "List access tokens",
		Verb: access.TokenList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct{ Paging }) (*list[Token], error) {
		return listAs(ctx, s, access.Tokens, store.Query{}, in.Paging, tokenOf)
	})
	register(s, api, operation{
		ID: "create-token", Method: http.MethodPost, Path: "/v1/tokens", Tag: tag, Status: http.StatusCreated,
		Summary: "Create an access token", Description: "The answer holds its secret, which is shown this once.",
		Verb: access.TokenCreate, Kind: kind, Errors: []atelier.Code{atelier.Exists},
	}, func(ctx context.Context, in *struct{ Body newToken }) (*resource[IssuedToken], error) {
		t, secret, err := s.access.CreateToken(ctx, access.AccessToken{
			Meta: atelier.Meta{Name: in.Body.Name}, Role: in.Body.Role, Workspace: in.Body.Workspace, Expires: in.Body.Expires,
		})
		return resourceOf(IssuedToken{tokenOf(t), secret}, err, func(v *IssuedToken) *atelier.Meta { return &v.Meta })
	})
	register(s, api, operation{
		ID: "revoke-token", Method: http.MethodDelete, Path: "/v1/tokens/{token}", Tag: tag,
		Summary: "Revoke an access token", Description: "It is worth nothing from now on.",
		Verb: access.TokenRevoke, Kind: kind, Object: "token", Errors: []atelier.Code{atelier.Stale},
	}, func(ctx context.Context, in *struct {
		Token string `path:"token" maxLength:"63" doc:"Name or id of the token"`
		IfMatchOptional
	}) (*empty, error) {
		revision, err := in.revision()
		if err != nil {
			return nil, err
		}
		return nil, s.access.RevokeToken(ctx, in.Token, revision)
	})
}
