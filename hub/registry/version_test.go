package registry

import (
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// TestLatest follows the newest version through archiving and deleting.
func TestLatest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	file := f.file(f.ws, "m.onnx", model(1, "", 0))
	latest := func(want int) {
		t.Helper()
		v, err := f.Version(ctx, f.ws, "m", Latest)
		if want == 0 {
			wants(t, "latest of nothing", err, atelier.NotFound)
		} else if err != nil || v.Number != want {
			t.Errorf("latest is %d (%v), want %d", v.Number, err, want)
		}
	}
	archive := func(number string, archived bool) {
		t.Helper()
		if _, err := f.UpdateVersion(ctx, f.ws, "m", number, 0, VersionChange{Archived: &archived}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		f.register(f.ws, "m", file)
	}
	latest(3)
	archive("3", true)
	latest(2)
	archive("1", true)
	latest(2)
	archive("3", false)
	latest(3)
	if err := f.DeleteVersion(ctx, f.ws, "m", "3", 0); err != nil {
		t.Fatal(err)
	}
	latest(2)
	if v := f.register(f.ws, "m", file); v.Number != 4 {
		t.Errorf("the number %d was given again", v.Number)
	}
	archive("2", true)
	archive("4", true)
	latest(0)
}

// TestInUse refuses to delete what is deployed, whole or in part.
func TestInUse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	file := f.file(f.ws, "m.onnx", model(1, "", 0))
	f.register(f.ws, "m", file)
	v := f.register(f.ws, "m", file)
	var d atelier.Deployment
	err := f.update(ctx, func(tx store.Tx) (err error) {
		d, err = catalog.Deployments.Insert(tx, f.ws, "", atelier.Deployment{Meta: atelier.Meta{Name: "line-3"}, VersionID: v.ID})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = f.DeleteVersion(ctx, f.ws, "m", "2", 0)
	wants(t, "delete the version", err, atelier.InUse)
	if err == nil || !strings.Contains(err.Error(), "line-3") {
		t.Errorf("%v does not say by what", err)
	}
	wants(t, "delete the model", f.DeleteModel(ctx, f.ws, "m", 0), atelier.InUse)
	if _, err := f.Version(ctx, f.ws, "m", "1"); err != nil {
		t.Errorf("a refused deletion took a version along: %v", err)
	}
	wants(t, "delete the workspace", f.Registry.DeleteWorkspace(ctx, f.ws, 0), atelier.InUse)
	err = f.update(ctx, func(tx store.Tx) error { return catalog.Deployments.Delete(tx, f.ws, d.ID, 0) })
	if err != nil {
		t.Fatal(err)
	}
	if err := f.DeleteModel(ctx, f.ws, "m", 0); err != nil {
		t.Error(err)
	}
}

// TestApart shows that a digest, a name or an id of another workspace gives nothing.
func TestApart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	other := f.workspace("other")
	file := f.file(other, "m.onnx", model(1, "", 0))
	v := f.register(other, "m", file)
	_, err := f.OpenBlob(ctx, f.ws, file.Digest)
	wants(t, "open by digest", err, atelier.NotFound)
	_, err = f.Register(ctx, f.ws, "mine", NewVersion{Files: []atelier.File{file}})
	wants(t, "register by digest", err, atelier.Invalid)
	for _, ref := range []string{"m", v.ModelID} {
		_, _, err = f.OpenFile(ctx, f.ws, ref, Latest, "", "m.onnx")
		wants(t, "open by "+ref, err, atelier.NotFound)
		wants(t, "delete by "+ref, f.DeleteModel(ctx, f.ws, ref, 0), atelier.NotFound)
	}
	f.register(other, "two", file)
	_, err = f.Version(ctx, other, "two", v.ID)
	wants(t, "the version of another model", err, atelier.NotFound)
}

// TestStale refuses a change that was made of what is no more, and keeps the
// content of a version whatever is changed about it.
func TestStale(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	v := f.register(f.ws, "m", f.file(f.ws, "m.onnx", model(1, "", 0)))
	tags := map[string]string{"stage": "production"}
	changed, err := f.UpdateVersion(ctx, f.ws, "m", "1", v.Revision, VersionChange{Tags: &tags})
	if err != nil {
		t.Fatal(err)
	}
	if changed.Digest != v.Digest || changed.Tags["stage"] != "production" || changed.Revision == v.Revision {
		t.Errorf("got %+v", changed)
	}
	_, err = f.UpdateVersion(ctx, f.ws, "m", "1", v.Revision, VersionChange{Tags: &tags})
	wants(t, "change", err, atelier.Stale)
	wants(t, "delete", f.DeleteVersion(ctx, f.ws, "m", "1", v.Revision), atelier.Stale)
	if err := f.DeleteVersion(ctx, f.ws, "m", "1", changed.Revision); err != nil {
		t.Error(err)
	}
}

// TestDeleteFreesContent lets go of a deleted version's content at once, but not
// of what another version is made of, nor of what was sent again for a new one.
func TestDeleteFreesContent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	weights := make([]byte, 100)
	first := []atelier.File{f.file(f.ws, "m.onnx", model(1, "weights.bin", 100)), f.file(f.ws, "weights.bin", weights), f.file(f.ws, "copy.bin", weights)}
	second := []atelier.File{f.file(f.ws, "m.onnx", model(2, "weights.bin", 100)), first[1]}
	f.register(f.ws, "m", first...)
	f.register(f.ws, "m", second...)
	holds := func(want bool, files ...atelier.File) {
		t.Helper()
		for _, file := range files {
			if _, err := f.Blob(ctx, f.ws, file.Digest); (err == nil) != want {
				t.Errorf("%s is held: %v (%v)", file.Path, !want, err)
			}
		}
	}
	if err := f.DeleteVersion(ctx, f.ws, "m", "1", 0); err != nil {
		t.Fatal(err)
	}
	holds(false, first[0])
	holds(true, second...)
	f.pass(time.Second)
	f.upload(f.ws, weights) // of a version that is about to be registered
	if err := f.DeleteModel(ctx, f.ws, "m", 0); err != nil {
		t.Fatal(err)
	}
	holds(false, second[0])
	holds(true, second[1])
}
