package atelier

import (
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in string
		ok bool
	}{
		{"digits", true}, {"a", true}, {"plant-7", true}, {"v1.2_x", true}, {strings.Repeat("a", 63), true},
		{"", false}, {"-a", false}, {"a-", false}, {".", false}, {"..", false}, {"a/b", false}, {"Digits", false},
		{"a b", false}, {"dé", false}, {strings.Repeat("a", 64), false}, {NewID(), false}, {"a\x00b", false},
	} {
		if err := CheckName("model", c.in); (err == nil) != c.ok {
			t.Errorf("CheckName(%q) gave %v", c.in, err)
		}
	}
}

func TestCheckFilePath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in string
		ok bool
	}{
		{"model.onnx", true}, {"a/b/c.bin", true}, {"räder/größe.onnx", true}, {"...", true}, {"a..b", true},
		{"", false}, {"/etc/passwd", false}, {"../x", false}, {"a/../b", false}, {"a/./b", false}, {"a//b", false}, {"a/", false},
		{`a\b`, false}, {"c:x", false}, {"a\x00b", false}, {"a\nb", false}, {"a\xffb", false}, {strings.Repeat("x", 513), false},
	} {
		if err := CheckFilePath(c.in); (err == nil) != c.ok {
			t.Errorf("CheckFilePath(%q) gave %v", c.in, err)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	labels, err := ParseLabels("site=hall-2, line=4")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		selector Labels
		match    bool
	}{
		{Labels{"site": "hall-2"}, true},
		{Labels{"site": "hall-2", "line": "4"}, true},
		{Labels{"site": "hall-3"}, false},
		{Labels{"site": "hall-2", "none": ""}, false},
		{Labels{}, false}, // to mean all devices one must say so
		{nil, false},
	} {
		if labels.Match(c.selector) != c.match {
			t.Errorf("%v matches %v: %v", labels, c.selector, !c.match)
		}
	}
	for _, bad := range []string{"site", "site=a,site=b", "=x", "Site=a", "site=" + strings.Repeat("x", 64), "site=a\tb"} {
		if _, err := ParseLabels(bad); CodeOf(err) != Invalid {
			t.Errorf("ParseLabels(%q) gave %v", bad, err)
		}
	}
}

func TestSelector(t *testing.T) {
	t.Parallel()
	d := &Device{Meta: Meta{ID: "01aryz6s41aryz6s41aryz6s41"}, Labels: Labels{"site": "hall-2"}}
	for _, c := range []struct {
		selector Selector
		match    bool
	}{
		{Selector{}, false},
		{Selector{All: true}, true},
		{Selector{Devices: []string{d.ID}}, true},
		{Selector{Devices: []string{"other"}}, false},
		{Selector{Labels: Labels{"site": "hall-2"}, Devices: []string{"other"}}, true},
	} {
		if c.selector.Match(d) != c.match {
			t.Errorf("%+v matches: %v", c.selector, !c.match)
		}
	}
}
