package atelier

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestCollectionsAreChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Collection)
		field  string
	}{
		"as it is":      {func(*Collection) {}, ""},
		"nothing":       {func(c *Collection) { c.Share = 0 }, ""},
		"negative":      {func(c *Collection) { c.Share = -0.1 }, "collect.share"},
		"too much":      {func(c *Collection) { c.Share = 1.1 }, "collect.share"},
		"no number":     {func(c *Collection) { c.Share = math.NaN() }, "collect.share"},
		"little disk":   {func(c *Collection) { c.Disk = 1 }, "collect.disk_bytes"},
		"little rate":   {func(c *Collection) { c.Rate = -1 }, "collect.rate_bytes"},
		"many masks":    {func(c *Collection) { c.Mask = make([]string, 65) }, "collect.mask"},
		"an empty mask": {func(c *Collection) { c.Mask = []string{""} }, "collect.mask"},
		"no name":       {func(c *Collection) { c.Mask = []string{"inputs."} }, "collect.mask"},
		"no side":       {func(c *Collection) { c.Mask = []string{"name"} }, "collect.mask"},
		"a long mask":   {func(c *Collection) { c.Mask = []string{"inputs." + strings.Repeat("x", 300)} }, "collect.mask"},
	} {
		one := Collection{Share: 0.5, Mask: []string{"inputs.a", "outputs.*"}}.Complete()
		c.change(&one)
		err := one.Check()
		if c.field == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var e *Error
		if e, _ = err.(*Error); e == nil || e.Code != Invalid || e.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMasks(t *testing.T) {
	t.Parallel()
	c := Collection{Mask: []string{"inputs.a.b", "inputs.c", "outputs.*"}}
	for _, m := range []struct {
		side, name string
		masked     bool
	}{{MaskInputs, "a.b", true}, {MaskInputs, "a", false}, {MaskInputs, "c", true}, {MaskInputs, "cc", false}, {MaskOutputs, "c", true}} {
		if got := c.Masks(m.side, m.name); got != m.masked {
			t.Errorf("%s.%s is masked: %v", m.side, m.name, got)
		}
	}
	if got := c.MasksWithin(MaskInputs, "a"); !reflect.DeepEqual(got, [][]string{{"b"}}) {
		t.Errorf("within a: %v", got)
	}
	s := &Signature{Inputs: []TensorSpec{{Name: "a.b"}, {Name: "c"}}, Outputs: []TensorSpec{{Name: "y"}}}
	if err := c.CheckSignature(s); err != nil {
		t.Error(err)
	}
	c.Mask = append(c.Mask, "outputs.Y")
	if err := c.CheckSignature(s); CodeOf(err) != Invalid || !strings.Contains(err.Error(), "outputs.y") {
		t.Errorf("a mask that fits nothing: %v", err)
	}
}
