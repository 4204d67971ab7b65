package distribution

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/images"
)

// Tools that know docker's tokens ask /v2/ without a credential, are told a realm, a
// service and a scope, fetch a token there with name and password, and show that one.
// A token of ours names an access token, a time and what it was fetched for, and is
// sealed with a key that the hub makes at each start. It is worth no more than the
// access token is at the moment of each request: revoking that ends both.

const (
	tokenPath   = "/v2/token"
	tokenPrefix = "atr_"
	tokenLife   = 10 * time.Minute
	maxScopes   = 16 // that one token may be fetched for
	maxToken    = 8 << 10
)

// token is what a sealed token says.
type token struct {
	Access  string   `json:"a"` // id of the access token that it stands for
	Expires int64    `json:"e"` // Unix time
	Scopes  []string `json:"s"` // "NAME:ACTION,ACTION"
}

func (a *API) seal(t token) (string, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return "", atelier.Errorf(atelier.Internal, "encode a token: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(body)
	return tokenPrefix + text + "." + base64.RawURLEncoding.EncodeToString(a.sum(text)), nil
}

func (a *API) sum(text string) []byte {
	mac := hmac.New(sha256.New, a.key[:])
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// open returns what a token says that this hub has sealed and that has not expired.
func (a *API) open(sealed string) (t token, ok bool) {
	text, sum, ok := strings.Cut(strings.TrimPrefix(sealed, tokenPrefix), ".")
	if !ok || len(sealed) > maxToken {
		return t, false
	}
	got, err := base64.RawURLEncoding.Strict().DecodeString(sum)
	if err != nil || !hmac.Equal(got, a.sum(text)) {
		return t, false
	}
	body, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || json.Unmarshal(body, &t) != nil {
		return t, false
	}
	return t, a.now().Unix() < t.Expires
}

// caller is who makes a request, and for what its token is good.
type caller struct {
	principal access.Principal
	scoped    bool // by scopes; otherwise by what the principal may do alone
	scopes    []string
}

// may reports whether the caller's token is for an action on a repository. Whether the
// caller may do it is for access.Authorize to say.
func (c caller) may(name, action string) bool {
	if !c.scoped {
		return true
	}
	for _, s := range c.scopes {
		of, actions, _ := strings.Cut(s, ":")
		if of == name && slices.Contains(strings.Split(actions, ","), action) {
			return true
		}
	}
	return false
}

// authenticate finds out who calls: Anonymous where no credential came.
func (a *API) authenticate(ctx context.Context, r *http.Request) (caller, error) {
	header := r.Header.Get("Authorization")
	scheme, secret, _ := strings.Cut(header, " ")
	secret = strings.TrimSpace(secret)
	switch {
	case header == "":
		return caller{principal: access.Principal{Kind: access.Anonymous}}, nil
	case strings.EqualFold(scheme, "Basic"):
		_, password, _ := r.BasicAuth()
		p, err := a.access.Authenticate(ctx, password)
		return caller{principal: p}, err
	case strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(secret, tokenPrefix):
		t, ok := a.open(secret)
		if !ok {
			return caller{}, atelier.Errorf(atelier.Unauthenticated, "the token has expired, or is none of this hub").WithRemedy("Fetch another one.")
		}
		p, err := a.access.Holder(ctx, t.Access)
		return caller{principal: p, scoped: true, scopes: t.Scopes}, err
	case strings.EqualFold(scheme, "Bearer"):
		p, err := a.access.Authenticate(ctx, secret)
		return caller{principal: p}, err
	}
	return caller{}, atelier.Errorf(atelier.Unauthenticated, "the Authorization header holds no token").
		WithRemedy("Log in with any user name and an access token of the hub as the password.")
}

// challenge tells where a token is to be fetched, and for what.
func (a *API) challenge(r *request, why string) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	host := r.Host
	if strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") != "" {
		host = "" // whoever sends such a name is told a realm without one
	}
	text := `Bearer realm="` + scheme + "://" + host + tokenPath + `",service="` + host + `"`
	if scope := r.scope(); scope != "" {
		text += `,scope="` + scope + `"`
	}
	if why != "" {
		text += `,error="` + why + `"`
	}
	r.w.Header().Set("WWW-Authenticate", text)
}

// scope is what a token must be fetched for to make the request.
func (r *request) scope() string {
	name := r.route.name()
	if name == "" {
		return ""
	}
	actions := scopeOf(r.Method, r.route.kind)
	if actions == "push" {
		actions = "pull,push"
	}
	scope := "repository:" + name + ":" + actions
	if from := r.URL.Query().Get("from"); r.route.kind == kindUploads && from != "" && images.CheckName(from) == nil {
		scope += " repository:" + from + ":pull"
	}
	return scope
}

// serveToken gives a token to whoever shows an access token: as the password of Basic,
// or of a form as OAuth 2 has it.
func (a *API) serveToken(w http.ResponseWriter, req *http.Request) {
	r := &request{Request: req, w: w}
	if err := a.giveToken(r); err != nil {
		a.fail(r, err)
	}
}

func (a *API) giveToken(r *request) error {
	secret, scopes := "", r.URL.Query()["scope"]
	switch r.Method {
	case http.MethodGet:
		_, secret, _ = r.BasicAuth()
	case http.MethodPost:
		r.Body = http.MaxBytesReader(r.w, r.Body, 64<<10)
		if err := r.ParseForm(); err != nil {
			return atelier.Errorf(atelier.Invalid, "the form cannot be read: %w", err)
		}
		scopes = r.PostForm["scope"]
		switch r.PostForm.Get("grant_type") {
		case "password":
			secret = r.PostForm.Get("password")
		case "refresh_token":
			secret = r.PostForm.Get("refresh_token")
		}
	default:
		return errMethod{map[string]operation{http.MethodGet: {}, http.MethodPost: {}}}
	}
	if secret == "" {
		return atelier.Errorf(atelier.Unauthenticated, "this needs an access token as the password, and none came").
			WithRemedy("Log in with any user name and an access token of the hub as the password.")
	}
	p, err := a.access.Authenticate(r.Context(), secret)
	if err != nil {
		return err
	}
	r.Request = r.WithContext(access.WithPrincipal(r.Context(), p))
	wanted, err := parseScopes(scopes)
	if err != nil {
		return err
	}
	sealed, err := a.seal(token{Access: p.ID, Expires: a.now().Add(tokenLife).Unix(), Scopes: wanted})
	if err != nil {
		return err
	}
	answer := map[string]any{
		"token": sealed, "access_token": sealed, "expires_in": int(tokenLife / time.Second), "issued_at": a.now().UTC().Format(time.RFC3339),
	}
	if r.Method == http.MethodPost {
		answer["scope"], answer["token_type"] = strings.Join(scopes, " "), "Bearer"
	}
	return answerJSON(r.w, http.StatusOK, answer)
}

// parseScopes reads the scopes that a token is asked for: "repository:NAME:ACTIONS",
// any number of them in each value. Those of other kinds give nothing.
func parseScopes(values []string) ([]string, error) {
	scopes := []string{}
	for _, v := range values {
		for s := range strings.FieldsSeq(v) {
			parts := strings.SplitN(s, ":", 3)
			if len(parts) != 3 || parts[0] != "repository" || images.CheckName(parts[1]) != nil || len(parts[2]) > 64 {
				continue
			}
			actions := parts[2]
			if actions == "*" {
				actions = "pull,push,delete"
			}
			if scopes = append(scopes, parts[1]+":"+actions); len(scopes) > maxScopes {
				return nil, atelier.Errorf(atelier.Invalid, "more than %d scopes are asked for", maxScopes)
			}
		}
	}
	return scopes, nil
}
