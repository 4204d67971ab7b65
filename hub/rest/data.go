package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	allDataPath = inWorkspace + "/data"
	dataPath    = inWorkspace + "/endpoints/{endpoint}/data"
)

// DataParam is the part of an input that names the endpoint of data files. Data stay when
// their endpoint is deleted, so that it is a name and no id.
type DataParam struct {
	WorkspaceParam
	Endpoint string `path:"endpoint" maxLength:"63" doc:"Name that the endpoint had when its requests were recorded"`
}

type deletedData struct {
	Files int `json:"files" doc:"How many files were deleted"`
}

func (s *server) registerData(api huma.API) {
	const tag = "Data"
	kind := catalog.DataFiles.Kind
	register(s, api, operation{
		ID: "list-all-data", Method: http.MethodGet, Path: allDataPath, Tag: tag, Summary: "List the data files of all endpoints",
		Verb: access.DataList, Kind: kind,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		PageParams
	}) (*list[atelier.DataFile], error) {
		return listOf(ctx, s, catalog.DataFiles, store.Query{Workspace: workspaceOf(ctx)}, in.paging())
	})
	register(s, api, operation{
		ID: "list-data", Method: http.MethodGet, Path: dataPath, Tag: tag, Summary: "List the data files of an endpoint",
		Description: "Parquet files of recorded requests. A file never changes; records that wait to become one are not shown.",
		Verb:        access.DataList, Kind: kind,
	}, func(ctx context.Context, in *struct {
		DataParam
		PageParams
	}) (*list[atelier.DataFile], error) {
		return listOf(ctx, s, catalog.DataFiles, store.Query{Workspace: workspaceOf(ctx), Parent: in.Endpoint}, in.paging())
	})
	register(s, api, operation{
		ID: "get-data", Method: http.MethodGet, Path: dataPath + "/{file}", Tag: tag, Summary: "Download a data file",
		Reply: octets, Ranges: true, Verb: access.DataExport, Kind: kind, Object: "file",
	}, func(ctx context.Context, in *struct {
		DataParam
		File string `path:"file" maxLength:"63" doc:"Id of the file"`
	}) (*stream, error) {
		f, b, err := s.data.OpenFile(ctx, workspaceOf(ctx), in.Endpoint, in.File)
		if err != nil {
			return nil, err
		}
		return s.serveBlob(b, f.Name), nil
	})
	register(s, api, operation{
		ID: "flush-data", Method: http.MethodPost, Path: allDataPath + "/flush", Tag: tag, Status: http.StatusNoContent,
		Summary:     "Make data files of the records that came until now",
		Description: "They would become files by themselves, by size or time; many small files are slower to read than few large ones.",
		Verb:        access.DataFlush, Kind: kind,
	}, func(ctx context.Context, _ *WorkspaceParam) (*empty, error) {
		return nil, s.data.Flush(ctx)
	})
	register(s, api, operation{
		ID: "delete-data", Method: http.MethodDelete, Path: dataPath, Tag: tag, Summary: "Delete data files of an endpoint",
		Verb: access.DataDelete, Kind: kind, Object: "endpoint",
	}, func(ctx context.Context, in *struct {
		DataParam
		Before string `query:"before" maxLength:"10" pattern:"^\\d{4}-\\d{2}-\\d{2}$" doc:"Only files from before this date, 2006-01-02; all without it"`
	}) (*answer[deletedData], error) {
		n, err := s.data.Delete(ctx, workspaceOf(ctx), in.Endpoint, in.Before)
		return answerOf(deletedData{n}, err)
	})
}
