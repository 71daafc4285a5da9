package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1beta1validation "k8s.io/apimachinery/pkg/apis/meta/v1beta1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/printers"
	printersinternal "k8s.io/kubernetes/pkg/printers/internalversion"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// tables makes the columns that kubectl shows, by upstream's printers.
type tables struct {
	scheme    *runtime.Scheme
	generator *printers.HumanReadableGenerator
}

func newTables(scheme *runtime.Scheme) *tables {
	return &tables{scheme: scheme, generator: printers.NewTableGenerator().With(printersinternal.AddHandlers)}
}

// tableMaker makes the tables of one answer; only the first has column definitions.
type tableMaker struct {
	tables  *tables
	version string
	kind    schema.GroupVersionKind
	special rest.TableConvertor // instead of the printers, if not nil
	include metav1.IncludeObjectPolicy
	headers bool
}

// maker reads the table options of a request.
func (t *tables) maker(q *query, out output, frame *kindFrame) (*tableMaker, error) {
	var opts metav1.TableOptions
	if err := decodeQuery(q.r.URL.RawQuery, &opts); err != nil {
		return nil, err
	}
	switch errs := metav1beta1validation.ValidateTableOptions(&opts); len(errs) {
	case 0:
	case 1:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: %v", errs[0].Error()))
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: %v", errs))
	}
	if opts.IncludeObject == "" {
		opts.IncludeObject = metav1.IncludeMetadata
	}
	return &tableMaker{tables: t, version: out.version, kind: frame.kind, special: frame.table, include: opts.IncludeObject, headers: !opts.NoHeaders}, nil
}

// rows makes the table of objects.
func (m *tableMaker) rows(objects []store.Object, list metav1.ListMeta) (*metav1.Table, error) {
	table := &metav1.Table{ListMeta: list, Rows: []metav1.TableRow{}}
	table.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: m.version, Kind: "Table"})
	for _, object := range objects {
		if err := m.add(table, object); err != nil {
			return nil, err
		}
	}
	if len(objects) == 0 && m.headers {
		if err := m.emptyHeaders(table); err != nil {
			return nil, err
		}
	}
	return table, nil
}

// add appends the rows of one object.
func (m *tableMaker) add(table *metav1.Table, object store.Object) error {
	part, err := m.print(object)
	if err != nil {
		return err
	}
	if m.headers {
		table.ColumnDefinitions, m.headers = part.ColumnDefinitions, false
	}
	for i := range part.Rows {
		row := part.Rows[i]
		row.Object = runtime.RawExtension{}
		switch m.include {
		case metav1.IncludeObject:
			row.Object.Object = object
		case metav1.IncludeMetadata:
			row.Object.Object = partialOf(object, m.version)
		case metav1.IncludeNone:
		}
		table.Rows = append(table.Rows, row)
	}
	return nil
}

// print makes the cells by the kind's printer, or name and age if it has none.
func (m *tableMaker) print(object runtime.Object) (*metav1.Table, error) {
	internal, err := m.tables.scheme.UnsafeConvertToVersion(object, schema.GroupVersion{Group: m.kind.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		internal = object
	}
	if m.special != nil {
		return m.special.ConvertToTable(context.Background(), internal, nil)
	}
	if part, err := m.tables.generator.GenerateTable(internal, printers.GenerateOptions{Wide: true}); err == nil {
		return part, nil
	}
	return rest.NewDefaultTableConvertor(schema.GroupResource{Group: m.kind.Group, Resource: m.kind.Kind}).ConvertToTable(context.Background(), object, nil)
}

// emptyHeaders gives an empty table the columns of its kind.
func (m *tableMaker) emptyHeaders(table *metav1.Table) error {
	var object runtime.Object = &unstructured.UnstructuredList{}
	if made, err := m.tables.scheme.New(m.kind); err == nil { // else it is a custom resource
		object = made
	}
	part, err := m.print(object)
	if err != nil {
		return err
	}
	table.ColumnDefinitions, m.headers = part.ColumnDefinitions, false
	return nil
}

// one is the encoded table of one object, for a watch event.
func (m *tableMaker) one(object store.Object) ([]byte, error) {
	table, err := m.rows([]store.Object{object}, metav1.ListMeta{ResourceVersion: object.GetResourceVersion()})
	if err != nil {
		return nil, err
	}
	return json.Marshal(table)
}

// partialOf is the metadata of object as a document of its own.
func partialOf(object store.Object, version string) *metav1.PartialObjectMetadata {
	partial := meta.AsPartialObjectMetadata(object)
	partial.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: version, Kind: "PartialObjectMetadata"})
	return partial
}

// shaped sends one object as a table or its metadata.
func (s *Server) shaped(q *query, out output, code int, frame *kindFrame, entry *store.Entry) int {
	if out.shape == shapeTable {
		maker, err := s.tables.maker(q, out, frame)
		if err != nil {
			return s.fail(q, err)
		}
		table, err := maker.rows([]store.Object{entry.Object}, metav1.ListMeta{ResourceVersion: entry.Object.GetResourceVersion()})
		if err != nil {
			return s.fail(q, err)
		}
		return s.writeShape(q, out, code, table.GroupVersionKind(), table)
	}
	if out.list {
		return s.fail(q, shapeMismatch(fmt.Sprintf("you requested PartialObjectMetadataList, but the requested object is not a list (%T)", entry.Object)))
	}
	partial := partialOf(entry.Object, out.version)
	return s.writeShape(q, out, code, partial.GroupVersionKind(), partial)
}

// shapedList sends a page as a table or a list of metadata.
func (s *Server) shapedList(q *query, out output, ep *endpoint, got *registry.List) int {
	if out.shape == shapeTable {
		maker, err := s.tables.maker(q, out, &ep.kindFrame)
		if err != nil {
			return s.fail(q, err)
		}
		objects := make([]store.Object, len(got.Entries))
		for i, entry := range got.Entries {
			objects[i] = entry.Object
		}
		table, err := maker.rows(objects, listMeta(got))
		if err != nil {
			return s.fail(q, err)
		}
		return s.writeShape(q, out, http.StatusOK, table.GroupVersionKind(), table)
	}
	if !out.list {
		return s.fail(q, shapeMismatch(fmt.Sprintf("you requested PartialObjectMetadata, but the requested object is a list (%s)", ep.listKind.Kind)))
	}
	list := &metav1.PartialObjectMetadataList{ListMeta: listMeta(got), Items: make([]metav1.PartialObjectMetadata, len(got.Entries))}
	for i, entry := range got.Entries {
		list.Items[i] = *partialOf(entry.Object, out.version)
	}
	return s.writeShape(q, out, http.StatusOK, schema.GroupVersionKind{Group: metav1.GroupName, Version: out.version, Kind: "PartialObjectMetadataList"}, list)
}

func (s *Server) writeShape(q *query, out output, code int, kind schema.GroupVersionKind, object runtime.Object) int {
	out.pretty = wantsPretty(&out, q.r)
	return s.writeObject(q, out, code, kind, object)
}

// shapeMismatch is the 406 for a shape that does not fit the answer.
func shapeMismatch(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable, Message: message,
	}}
}
