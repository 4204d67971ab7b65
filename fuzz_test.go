package atelier

import (
	"bytes"
	"encoding/json"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func FuzzParseLabels(f *testing.F) {
	f.Add("site=hall-2,line=a")
	f.Add(" a = b ,c=")
	f.Add("a=b=c")
	f.Add("a=\x00")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLabels(s)
		if err != nil {
			if CodeOf(err) != Invalid {
				t.Fatalf("code %s: %v", CodeOf(err), err)
			}
			return
		}
		if len(l) > 0 && (!l.Match(l) || l.Match(Labels{})) {
			t.Fatalf("%v does not select itself, or an empty selector does", l)
		}
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(l)) {
			pairs = append(pairs, k+"="+l[k])
		}
		again, err := ParseLabels(strings.Join(pairs, ","))
		if err != nil || !maps.Equal(again, l) {
			t.Fatalf("%q is %v, which reads as %v, %v", s, l, again, err)
		}
	})
}

// What passes becomes a part of paths and topics.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"digits", "..", "a/b", "01jz0000000000000000000001", "sha256:" + strings.Repeat("0a", 32), "sha256:" + strings.Repeat("A0", 32), "a\x00b", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		plain := func(what string) {
			if s == "" || len(s) > 80 || strings.ContainsAny(s, "/\\+#%\x00 ") || !filepath.IsLocal(s) || strings.ToLower(s) != s {
				t.Errorf("%q passed as %s", s, what)
			}
		}
		if CheckName("model", s) == nil {
			plain("a name")
			if IsID(s) {
				t.Errorf("%q is both name and id", s)
			}
		}
		if IsID(s) {
			plain("an id")
		}
		if d, err := ParseDigest(s); err == nil {
			plain("a digest")
			sum, err := d.Sum()
			if err != nil || string(DigestFromSum(sum)) != s {
				t.Errorf("digest %q has the sum %x, %v", s, sum, err)
			}
		}
	})
}

// A path that passes stays below the directory that it is joined to.
func FuzzCheckFilePath(f *testing.F) {
	for _, s := range []string{"model.onnx", "a/b/c", "../x", "/etc/passwd", "a//b", "a/./b", `a\b`, "c:x", "a/..", "a\x00b", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckFilePath(s) != nil {
			return
		}
		if !filepath.IsLocal(s) || path.Clean(s) != s || strings.ContainsRune(s, 0) || len(s) > 512 {
			t.Errorf("%q passed", s)
		}
		if joined := filepath.Join("/store", s); joined != "/store/"+s {
			t.Errorf("%q leads to %s", s, joined)
		}
	})
}

// What a peer of another version says of a reason is kept as it came.
func FuzzWhy(f *testing.F) {
	f.Add([]byte(`{"reason":"NoSpace","message":"the disk is full","remedy":"Free some."}`))
	f.Add([]byte(`{"reason":"FromTheFuture"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w Why
		if json.Unmarshal(b, &w) != nil {
			return
		}
		if w.Reason() == "" {
			t.Fatal("a Why without a reason")
		}
		first, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		var again Why
		if err := json.Unmarshal(first, &again); err != nil {
			t.Fatal(err)
		}
		if second, err := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%s came back as %s, %v", first, second, err)
		}
	})
}

// The documents that cross between hub and device say the same when they are
// read and written once more.
func FuzzStates(f *testing.F) {
	f.Add([]byte(`{"device":"01jz0000000000000000000001","epoch":1,"generation":2,"modules":[{"deployment":"x"}]}`))
	f.Add([]byte(`{"session":"s","sequence":1,"modules":[{"deployment":"x","current":null}],"conditions":[{"type":"Gateway","true":true,"why":{"reason":"AsDesired"}}]}`))
	f.Add([]byte(`{"sequence":3,"routes":[{"endpoint":"e","keys":{"primary":"00"},"backend":{"socket":"/x"}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		sameAgain[DesiredState](t, b)
		sameAgain[ReportedState](t, b)
		sameAgain[RouteTable](t, b)
		sameAgain[GatewayStatus](t, b)
	})
}

func sameAgain[T any](t *testing.T, b []byte) {
	var v, again T
	if json.Unmarshal(b, &v) != nil {
		return
	}
	first, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%T was read and cannot be written: %v", v, err)
	}
	if err := json.Unmarshal(first, &again); err != nil {
		t.Fatalf("%T cannot be read back: %v\n%s", v, err, first)
	}
	if second, err := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%T came back as another\n%s\n%s\n%v", v, first, second, err)
	}
}
