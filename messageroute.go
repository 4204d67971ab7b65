package atelier

import (
	"fmt"
	"strings"
	"time"
)

// MessageRoute leads what modules of a device put out to an input of a module on the same
// device, or into the workspace. Messages wait on the device's disk until they are taken,
// or have outlived their time to live.
type MessageRoute struct {
	// Route is what ParseRoute reads, in the form that RoutePath.String writes.
	Route string `json:"route"`
	// TTL is how many seconds a message may wait; 0 for DefaultMessageTTL.
	TTL int64 `json:"ttl_seconds,omitempty"`
}

// The bounds of routes.
const (
	DefaultMessageTTL = 2 * time.Hour
	MaxMessageTTL     = 30 * 24 * time.Hour
	MaxMessageRoutes  = 32  // of a deployment
	maxRouteText      = 512 // bytes
)

// Live is how long a message may wait on the route.
func (r MessageRoute) Live() time.Duration {
	if r.TTL <= 0 {
		return DefaultMessageTTL
	}
	return min(time.Duration(r.TTL)*time.Second, MaxMessageTTL)
}

// AnyModule and AnyOutput stand for all of them in a RoutePath.
const (
	AnyModule = "*"
	AnyOutput = "*"
)

// RoutePath is where a route leads from and to.
type RoutePath struct {
	From   string // the module that puts out, or AnyModule
	Output string // the output's name, or AnyOutput
	Into   string // the module that takes in, "" for the workspace
	Input  string // the input's name, "" for the workspace
}

// Upstream reports whether the route leads into the workspace.
func (p RoutePath) Upstream() bool { return p.Into == "" }

// Match reports whether the route takes what a module puts out.
func (p RoutePath) Match(module, output string) bool {
	return (p.From == AnyModule || p.From == module) && (p.Output == AnyOutput || p.Output == output)
}

// String writes the route as ParseRoute reads it, the same text for the same route.
func (p RoutePath) String() string {
	from := "/modules/" + p.From + "/outputs/" + p.Output
	if p.From == AnyModule && p.Output == AnyOutput {
		from = "/*"
	}
	if p.Upstream() {
		return "FROM " + from + " INTO upstream"
	}
	return "FROM " + from + " INTO /modules/" + p.Into + "/inputs/" + p.Input
}

// ParseRoute reads a route as people write it, IoT Edge's forms among them:
//
//	FROM /modules/camera/outputs/frames INTO /modules/counter/inputs/frames
//	FROM /messages/modules/counter/outputs/* INTO upstream
//	FROM /messages/* INTO $upstream
//	FROM /modules/camera/* INTO BrokeredEndpoint("/modules/counter/inputs/frames")
//
// Keywords may be in any case. There are no conditions: a WHERE is refused. Errors are
// Invalid, and say what came, what was expected, and where.
func ParseRoute(text string) (RoutePath, error) {
	var p RoutePath
	if len(text) > maxRouteText {
		return p, Errorf(Invalid, "the route has %d bytes, at most %d are taken", len(text), maxRouteText)
	}
	words := split(text)
	at := func(i int) (word string, column int) {
		if i < len(words) {
			return words[i].text, words[i].column
		}
		return "", len([]rune(text)) + 1
	}
	expect := func(i int, what string) error {
		word, column := at(i)
		found := fmt.Sprintf("%.80q", word)
		if word == "" {
			found = "its end"
		}
		return Errorf(Invalid, "the route %.200q has %s at character %d, %s was expected", text, found, column, what).
			WithRemedy("Write it like 'FROM /modules/camera/outputs/frames INTO /modules/counter/inputs/frames', or 'INTO upstream'.")
	}
	if word, _ := at(0); !strings.EqualFold(word, "FROM") {
		return p, expect(0, "FROM")
	}
	source, _ := at(1)
	if !p.source(source) {
		return p, expect(1, "a source like /modules/NAME/outputs/NAME, with * for all")
	}
	word, column := at(2)
	switch {
	case strings.EqualFold(word, "WHERE"):
		return p, Errorf(Invalid, "the route %.200q has a condition at character %d; routes have none", text, column).
			WithRemedy("Leave WHERE away, and let the module that takes in look at what comes, or put out to outputs with other names.")
	case !strings.EqualFold(word, "INTO"):
		return p, expect(2, "INTO")
	}
	sink, _ := at(3)
	if !p.sink(sink) {
		return p, expect(3, "a sink like /modules/NAME/inputs/NAME, or upstream,")
	}
	if len(words) > 4 {
		return p, expect(4, "nothing more")
	}
	return p, nil
}

// word is a part of a route, with where it begins, in characters from 1.
type word struct {
	text   string
	column int
}

// split splits a text at white space, but not within brackets.
func split(text string) (words []word) {
	column, depth, begin := 0, 0, -1
	from := 0
	for i, r := range text {
		column++
		space := (r == ' ' || r == '\t' || r == '\n' || r == '\r') && depth == 0
		switch {
		case space && begin >= 0:
			words = append(words, word{text[begin:i], from})
			begin = -1
		case !space && begin < 0:
			begin, from = i, column
		}
		switch r {
		case '(':
			depth++
		case ')':
			depth = max(0, depth-1)
		}
	}
	if begin >= 0 {
		words = append(words, word{text[begin:], from})
	}
	return words
}

// source reads what stands behind FROM.
func (p *RoutePath) source(text string) bool {
	path := strings.TrimPrefix(text, "/messages")
	if path == "/*" || path == "/modules/*" {
		p.From, p.Output = AnyModule, AnyOutput
		return true
	}
	parts := strings.Split(path, "/")
	switch {
	case len(parts) == 4 && parts[3] == "*": // /modules/NAME/*
		p.From, p.Output = parts[2], AnyOutput
	case len(parts) == 5 && parts[3] == "outputs":
		p.From, p.Output = parts[2], parts[4]
	default:
		return false
	}
	return parts[0] == "" && parts[1] == "modules" && (p.From == AnyModule || CheckName("module", p.From) == nil) && (p.Output == AnyOutput || IsPortName(p.Output))
}

// sink reads what stands behind INTO.
func (p *RoutePath) sink(text string) bool {
	if strings.EqualFold(text, "upstream") || strings.EqualFold(text, "$upstream") {
		p.Into, p.Input = "", ""
		return true
	}
	const brokered = "BrokeredEndpoint("
	if len(text) > len(brokered) && strings.EqualFold(text[:len(brokered)], brokered) {
		inner, closed := strings.CutSuffix(text[len(brokered):], ")")
		inner = strings.TrimSpace(inner)
		if !closed || len(inner) < 2 || inner[0] != inner[len(inner)-1] || inner[0] != '"' && inner[0] != '\'' {
			return false
		}
		text = inner[1 : len(inner)-1]
	}
	parts := strings.Split(text, "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "modules" || parts[3] != "inputs" {
		return false
	}
	p.Into, p.Input = parts[2], parts[4]
	return CheckName("module", p.Into) == nil && IsPortName(p.Input)
}

// IsPortName reports whether s can name an output or an input: 1 to 63 letters, digits,
// '-', '_' and '.'.
func IsPortName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// Normal returns r with its text as RoutePath.String writes it, checked.
func (r MessageRoute) Normal() (MessageRoute, error) {
	p, err := ParseRoute(r.Route)
	if err != nil {
		return r, err
	}
	if r.TTL < 0 || time.Duration(r.TTL) > MaxMessageTTL/time.Second {
		return r, Errorf(Invalid, "the time to live of %q is %d seconds; 1 to %d were expected, or 0 for %d", p, r.TTL, int64(MaxMessageTTL/time.Second), int64(DefaultMessageTTL/time.Second))
	}
	r.Route = p.String()
	return r, nil
}
