package registry

import (
	"context"
	"errors"
	"fmt"

	"gantry.dev/gantry/internal/store"
)

// Import stores an object as another cluster has it, with its UID, times and status, in place of one of the same name.
// data is JSON with kind and apiVersion. Neither strategy nor admission is asked: it is for a copy of a cluster, made
// before anything runs in it.
func (r *Resource) Import(ctx context.Context, data []byte) error {
	kind := r.def.stored
	obj, err := kind.Codec.Decode(data)
	if err != nil {
		return fmt.Errorf("reading a %s: %w", r.Kind.Kind, err)
	}
	obj.SetResourceVersion("")
	key := kind.Key(obj.GetNamespace(), obj.GetName())
	for {
		_, err := r.store.Create(ctx, kind.Name, key, obj)
		if !errors.Is(err, store.ErrExists) {
			return err
		}
		there, err := r.store.Get(kind.Name, key)
		if err != nil {
			continue // gone again
		}
		_, err = r.store.Update(ctx, kind.Name, key, there.Rev, obj)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
	}
}
