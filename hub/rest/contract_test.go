package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
)

// TestOpenAPI holds the generated document to what users' tools need of it, and
// checks every one of its references.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	r := h.do("", "GET", "/openapi.json", nil)
	var doc struct {
		OpenAPI    string                                `json:"openapi"`
		Info       struct{ Title, Version string }       `json:"info"`
		Paths      map[string]map[string]json.RawMessage `json:"paths"`
		Components struct {
			Schemas         map[string]json.RawMessage `json:"schemas"`
			SecuritySchemes map[string]json.RawMessage `json:"securitySchemes"`
		} `json:"components"`
	}
	r.into(t, 200, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Title == "" || doc.Info.Version != "1.2.3" {
		t.Errorf("version %q, info %+v", doc.OpenAPI, doc.Info)
	}
	ids := map[string]string{}
	for path, operations := range doc.Paths {
		for method, raw := range operations {
			where := strings.ToUpper(method) + " " + path
			var op struct {
				OperationID, Summary string
				Tags                 []string
				Security             []map[string][]string
				Parameters           []struct{ Name, In string }
				Responses            map[string]struct{ Content map[string]json.RawMessage }
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatal(where, err)
			}
			if op.OperationID == "" || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s has no id, no summary or no tag", where)
			}
			if other, twice := ids[op.OperationID]; twice {
				t.Errorf("%s and %s have the id %s", where, other, op.OperationID)
			}
			ids[op.OperationID] = where
			problems, success := 0, 0
			for status, answer := range op.Responses {
				switch {
				case status[0] == '2':
					success++
				case answer.Content[problemType] != nil:
					problems++
				case status != "416":
					t.Errorf("%s answers %s without a problem", where, status)
				}
			}
			if problems < 2 || success == 0 {
				t.Errorf("%s documents %d failures and %d successes", where, problems, success)
			}
			if op.Security == nil {
				t.Errorf("%s does not say which credential it wants", where)
			}
			for _, name := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
				found := false
				for _, p := range op.Parameters {
					found = found || p.In == "path" && p.Name == name[1]
				}
				if !found {
					t.Errorf("%s does not describe its parameter %s", where, name[1])
				}
			}
			if strings.Contains(path, "...") {
				t.Errorf("%s has a parameter that OpenAPI does not know", where)
			}
		}
	}
	for _, ref := range regexp.MustCompile(`"\$ref":"#/components/schemas/([^"]+)"`).FindAllSubmatch(r.body, -1) {
		if doc.Components.Schemas[string(ref[1])] == nil {
			t.Errorf("the schema %s is referred to and is not there", ref[1])
		}
	}
	for _, want := range []string{"Workspace", "Model", "Version", "Problem", "Event"} {
		if doc.Components.Schemas[want] == nil {
			t.Errorf("there is no schema %s", want)
		}
	}
	if bytes.Contains(r.body, []byte(`"nullable"`)) {
		t.Error("nullable is a word of OpenAPI 3.0")
	}
}

// TestDocs checks that the page is whole and asks nothing of any other host.
func TestDocs(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	if r := h.do("", "GET", "/docs", nil); r.status != 301 || r.header.Get("Location") != "/docs/" {
		t.Errorf("got %d %s", r.status, r.header.Get("Location"))
	}
	page := h.do("", "GET", "/docs/", nil)
	page.into(t, 200, nil)
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllSubmatch(page.body, -1) {
		name := string(m[1])
		if strings.Contains(name, "//") {
			t.Errorf("the page loads %s", name)
			continue
		}
		plain := h.do("", "GET", "/docs/"+name, nil)
		plain.into(t, 200, nil)
		zipped := h.do("", "GET", "/docs/"+name, nil, "Accept-Encoding: gzip")
		zipped.into(t, 200, nil)
		if zipped.header.Get("Content-Encoding") == "gzip" {
			b, err := gunzip(zipped.body)
			if err != nil || !bytes.Equal(b, plain.body) {
				t.Errorf("%s differs when it is zipped: %v", name, err)
			}
		}
		if len(plain.body) < 100 || plain.header.Get("Content-Type") == "" {
			t.Errorf("%s: %d bytes of %s", name, len(plain.body), plain.header.Get("Content-Type"))
		}
	}
	policy := page.header.Get("Content-Security-Policy")
	if policy != docsPolicy || strings.Contains(policy, "http") || strings.Contains(policy, "*") {
		t.Errorf("policy %q", policy)
	}
	h.do("", "GET", "/docs/other.js", nil).fails(t, atelier.NotFound)
}

// TestRefusals goes through the ways in which a request can be wrong.
func TestRefusals(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	const ws = "/v1/workspaces"
	for name, c := range map[string]struct {
		r      reply
		status int
		code   atelier.Code
		field  string
	}{
		"no token":        {h.do("", "GET", ws, nil), 401, atelier.Unauthenticated, ""},
		"no token, no ws": {h.do("", "GET", ws+"/nothing", nil), 401, atelier.Unauthenticated, ""},
		"wrong token":     {h.do("atl_x", "GET", ws, nil), 401, atelier.Unauthenticated, ""},
		"wrong scheme":    {h.do("", "GET", ws, nil, "Authorization: Digest x"), 401, atelier.Unauthenticated, ""},
		"empty password":  {h.do("", "GET", ws, nil, "Authorization: Basic YWRtaW46"), 401, atelier.Unauthenticated, ""},
		"no such path":    {h.do(h.admin, "GET", "/v2/nothing", nil), 404, atelier.NotFound, ""},
		"no such method":  {h.do(h.admin, "PUT", ws, nil), 405, atelier.Unsupported, ""},
		"no such thing":   {h.do(h.admin, "GET", ws+"/lab/models/none", nil), 404, atelier.NotFound, ""},
		"no body":         {h.do(h.admin, "POST", ws, nil), 400, atelier.Invalid, ""},
		"no JSON":         {h.do(h.admin, "POST", ws, "{"), 400, atelier.Invalid, "body"},
		"an array":        {h.do(h.admin, "POST", ws, "[]"), 400, atelier.Invalid, "body"},
		"not known":       {h.do(h.admin, "POST", ws, `{"name":"x","colour":"red"}`), 400, atelier.Invalid, "colour"},
		"missing":         {h.do(h.admin, "POST", ws, `{"description":"x"}`), 400, atelier.Invalid, "name"},
		"wrong type":      {h.do(h.admin, "POST", ws, `{"name":7}`), 400, atelier.Invalid, "name"},
		"null":            {h.do(h.admin, "POST", ws, `{"name":null}`), 400, atelier.Invalid, "name"},
		"deep field":      {h.do(h.admin, "POST", ws+"/lab/models/m/versions", `{"files":[{"path":"x","digest":"y","size":"big"}]}`), 400, atelier.Invalid, "files[0].size"},
		"form":            {h.do(h.admin, "POST", ws, "name=x", "Content-Type: application/x-www-form-urlencoded"), 415, atelier.Unsupported, "body"},
		"too large":       {h.do(h.admin, "POST", ws, `{"name":"`+strings.Repeat("x", maxBody)+`"}`), 413, atelier.TooLarge, ""},
		"query":           {h.do(h.admin, "GET", ws+"/lab?colour=red", nil), 400, atelier.Invalid, "colour"},
		"other site":      {h.do(h.admin, "POST", ws, `{"name":"x"}`, "Sec-Fetch-Site: cross-site"), 403, atelier.Forbidden, ""},
		"no such kind":    {h.do(h.admin, "POST", ws+"/lab/models/m/versions", map[string]any{"kind": "fpga", "files": []any{map[string]any{"path": "x", "digest": "y", "size": 1}}}), 422, atelier.Unsupported, "kind"},
	} {
		p := c.r.problem(t)
		if c.r.status != c.status || p.Code != c.code || p.Field != c.field {
			t.Errorf("%s: %d %s field %q (%s), want %d %s %q", name, c.r.status, p.Code, p.Field, p.Detail, c.status, c.code, c.field)
		}
		if p.Remedy == "" && name != "too large" {
			t.Errorf("%s: no remedy with %q", name, p.Detail)
		}
		if (c.r.status == 401) != (c.r.header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: WWW-Authenticate %q", name, c.r.header.Get("WWW-Authenticate"))
		}
	}
	if allow := h.do(h.admin, "PUT", ws, nil).header.Get("Allow"); allow != "GET, HEAD, POST" {
		t.Errorf("Allow: %s", allow)
	}
}

// TestFaults checks that what breaks inside of the hub is logged, and told
// without detail.
func TestFaults(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	add := func(path string, fail func() error) {
		register(h.server, h.server.api, operation{ID: path, Method: "GET", Path: path, Summary: "x", Tag: "x", Verb: access.HubShow, Kind: "hub"},
			func(context.Context, *struct{}) (*empty, error) { return nil, fail() })
	}
	add("/panics", func() error { panic("the secret in the panic") })
	add("/breaks", func() error { return errors.New("the secret in the error") })
	add("/internal", func() error { return atelier.Errorf(atelier.Internal, "the secret in the fault") })
	for _, path := range []string{"/panics", "/breaks", "/internal"} {
		r := h.do(h.admin, "GET", path, nil, "X-Request-Id: my-request"+path[1:])
		p := r.fails(t, atelier.Internal)
		if strings.Contains(string(r.body), "secret") || p.Request != "my-request"+path[1:] {
			t.Errorf("%s answers %s", path, r.body)
		}
		if log := h.log.String(); !strings.Contains(log, "secret in the") || !strings.Contains(log, p.Request) {
			t.Errorf("%s logs %s", path, log)
		}
	}
	h.do("", "GET", "/breaks", nil).fails(t, atelier.Unauthenticated)
	if strings.Contains(h.log.String(), h.admin) {
		t.Error("the token is in the log")
	}
}

// TestCodes checks that each code comes through with its own status.
func TestCodes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, code := range []atelier.Code{
		atelier.Invalid, atelier.Unauthenticated, atelier.Forbidden, atelier.NotFound, atelier.Exists, atelier.Conflict, atelier.Stale, atelier.InUse,
		atelier.TooLarge, atelier.Unsupported, atelier.Exhausted, atelier.NoSpace, atelier.Unavailable, atelier.Timeout, atelier.Corrupt,
	} {
		path := "/fails/" + string(code)
		register(h.server, h.server.api, operation{ID: path, Method: "GET", Path: path, Summary: "x", Tag: "x", Verb: access.HubShow, Kind: "hub"},
			func(context.Context, *struct{}) (*empty, error) {
				return nil, fmt.Errorf("wrapped: %w", atelier.Errorf(code, "it went %s", code).WithRemedy("do").WithField("here"))
			})
		r := h.do(h.admin, "GET", path, nil)
		p := r.fails(t, code)
		if r.status != code.HTTPStatus() || p.Detail != "it went "+string(code) || p.Remedy != "do" || p.Field != "here" {
			t.Errorf("%s: %d %s", code, r.status, r.body)
		}
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	r := h.do(h.admin, "GET", "/v1", nil, "X-Request-Id: bad id\"")
	if id := r.header.Get(headerRequest); !plainID(id) {
		t.Errorf("request id %q", id)
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	} {
		if got := r.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	basic, err := http.NewRequest("GET", h.url+"/v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	basic.SetBasicAuth("whoever", h.admin)
	res, err := http.DefaultTransport.RoundTrip(basic)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("Basic with the token as password: %s", res.Status)
	}
}

var _ huma.StatusError = (*Problem)(nil)
