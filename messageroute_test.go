package atelier

import (
	"strings"
	"testing"
)

func TestParseRoute(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"FROM /modules/a/outputs/x INTO /modules/b/inputs/y":                              "FROM /modules/a/outputs/x INTO /modules/b/inputs/y",
		"from /messages/modules/a/outputs/x into $upstream":                               "FROM /modules/a/outputs/x INTO upstream",
		"  FROM  /messages/modules/a/outputs/*\n\tINTO Upstream ":                         "FROM /modules/a/outputs/* INTO upstream",
		"FROM /modules/a/* INTO upstream":                                                 "FROM /modules/a/outputs/* INTO upstream",
		"FROM /messages/* INTO upstream":                                                  "FROM /* INTO upstream",
		"FROM /* INTO upstream":                                                           "FROM /* INTO upstream",
		"FROM /messages/modules/*/outputs/alarm INTO upstream":                            "FROM /modules/*/outputs/alarm INTO upstream",
		`FROM /messages/modules/* INTO BrokeredEndpoint("/modules/b/inputs/y")`:           "FROM /* INTO /modules/b/inputs/y",
		`FROM /modules/a/outputs/x INTO brokeredendpoint( '/modules/b.c/inputs/In_1-2' )`: "FROM /modules/a/outputs/x INTO /modules/b.c/inputs/In_1-2",
	} {
		p, err := ParseRoute(text)
		if err != nil || p.String() != want {
			t.Errorf("%s: %q, %v, want %q", text, p, err, want)
		}
		if again, err := ParseRoute(p.String()); err != nil || again != p {
			t.Errorf("%s: read again it is %q, %v", text, again, err)
		}
	}
	for text, says := range map[string]string{
		"":                              "its end at character 1, FROM was expected",
		"FROM":                          "its end at character 5, a source",
		"FRÖM /* INTO upstream":         `"FRÖM" at character 1, FROM`,
		"FROM /modules/a INTO upstream": `"/modules/a" at character 6, a source`,
		"FROM /modules/A/outputs/x INTO upstream":                             "at character 6, a source",
		"FROM /modules/a/inputs/x INTO upstream":                              "at character 6, a source",
		"FROM /modules/a/outputs/x":                                           "its end at character 26, INTO",
		"FROM /modules/a/outputs/x WHERE temperature > 5 INTO upstream":       "has a condition at character 27; routes have none",
		"FROM /modules/a/outputs/x INTO cloud":                                `"cloud" at character 32, a sink`,
		"FROM /modules/a/outputs/x INTO /modules/b/inputs/*":                  "at character 32, a sink",
		"FROM /modules/a/outputs/x INTO /modules/b/inputs/+":                  "at character 32, a sink",
		"FROM /modules/a/outputs/x INTO upstream please":                      `"please" at character 41, nothing more`,
		`FROM /modules/a/outputs/x INTO BrokeredEndpoint("/modules/b"`:        "at character 32, a sink",
		"FROM /twinChangeNotifications INTO upstream":                         "at character 6, a source",
		"FROM /modules/a/outputs/x INTO upstream" + strings.Repeat(" ", 1000): "at most 512",
	} {
		if p, err := ParseRoute(text); CodeOf(err) != Invalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, %v, want %q", text, p, err, says)
		}
	}
	p, _ := ParseRoute("FROM /modules/a/outputs/* INTO upstream")
	if !p.Match("a", "x") || p.Match("b", "x") || !p.Upstream() {
		t.Errorf("%+v matches what it should not, or not what it should", p)
	}
}

func TestMessageRouteNormal(t *testing.T) {
	t.Parallel()
	for _, ttl := range []int64{-1, 30*24*3600 + 1, 1 << 62} {
		if _, err := (MessageRoute{Route: "FROM /* INTO upstream", TTL: ttl}).Normal(); CodeOf(err) != Invalid {
			t.Errorf("%d seconds: %v", ttl, err)
		}
	}
	r, err := MessageRoute{Route: "from /messages/* into $upstream", TTL: 60}.Normal()
	if err != nil || r.Route != "FROM /* INTO upstream" || r.Live().Seconds() != 60 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, seed := range []string{
		"FROM /modules/a/outputs/x INTO /modules/b/inputs/y", "FROM /* INTO $upstream", `from /messages/modules/a/* into BrokeredEndpoint("/modules/b/inputs/y")`,
		"FROM /* WHERE a = 1 INTO upstream", "FROM ((((", "FROM \xff INTO", "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseRoute(text)
		if err != nil {
			if CodeOf(err) != Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseRoute(p.String())
		if err != nil || again != p {
			t.Errorf("%q is %q, which reads as %q, %v", text, p, again, err)
		}
		if !p.Upstream() && (p.Into == AnyModule || !IsPortName(p.Input)) {
			t.Errorf("%q leads into %q, input %q", text, p.Into, p.Input)
		}
	})
}
