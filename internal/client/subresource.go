package client

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/store"
)

// subClient works on one subresource.
type subClient struct {
	client *Client
	name   string
}

// Status implements ctrlclient.Client.
func (c *Client) Status() ctrlclient.SubResourceWriter { return c.SubResource("status") }

// SubResource implements ctrlclient.Client.
func (c *Client) SubResource(name string) ctrlclient.SubResourceClient { return subClient{c, name} }

// Get implements ctrlclient.SubResourceClient.
func (s subClient) Get(ctx context.Context, obj, sub ctrlclient.Object, _ ...ctrlclient.SubResourceGetOption) error {
	r, err := s.client.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = s.client.authorize(ctx, r, "get", s.name, obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	entry, err := r.GetSub(ctx, obj.GetNamespace(), obj.GetName(), s.name, "")
	if err != nil {
		return err
	}
	return fill(sub, entry.Object)
}

// Create implements ctrlclient.SubResourceClient.
func (s subClient) Create(ctx context.Context, obj, sub ctrlclient.Object, opts ...ctrlclient.SubResourceCreateOption) error {
	r, err := s.client.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = s.client.authorize(ctx, r, "create", s.name, obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	options := (&ctrlclient.SubResourceCreateOptions{}).ApplyOptions(opts)
	out, err := r.CreateSub(ctx, obj.GetNamespace(), obj.GetName(), s.name, sub.DeepCopyObject(), options.AsCreateOptions())
	if err != nil {
		return err
	}
	if answer, ok := out.(store.Object); ok {
		return fill(sub, answer)
	}
	return nil // a Status: it worked
}

// Update implements ctrlclient.SubResourceClient.
func (s subClient) Update(ctx context.Context, obj ctrlclient.Object, opts ...ctrlclient.SubResourceUpdateOption) error {
	options := (&ctrlclient.SubResourceUpdateOptions{}).ApplyOptions(opts)
	if options.SubResourceBody == nil {
		return s.client.update(ctx, obj, s.name, &options.UpdateOptions)
	}
	r, err := s.client.resource(obj)
	if err != nil {
		return err
	}
	if ctx, err = s.client.authorize(ctx, r, "update", s.name, obj.GetNamespace(), obj.GetName()); err != nil {
		return err
	}
	entry, _, err := r.Update(ctx, obj.GetNamespace(), obj.GetName(), s.name, options.SubResourceBody.DeepCopyObject(),
		s.client.manager(options.FieldManager), options.AsUpdateOptions())
	if err != nil {
		return err
	}
	return fill(options.SubResourceBody, entry.Object)
}

// Patch implements ctrlclient.SubResourceClient.
func (s subClient) Patch(ctx context.Context, obj ctrlclient.Object, patch ctrlclient.Patch, opts ...ctrlclient.SubResourcePatchOption) error {
	options := (&ctrlclient.SubResourcePatchOptions{}).ApplyOptions(opts)
	body := obj
	if options.SubResourceBody != nil {
		body = options.SubResourceBody
	}
	return s.client.patch(ctx, obj, body, s.name, patch, &options.PatchOptions)
}

// Apply implements ctrlclient.SubResourceClient.
func (s subClient) Apply(ctx context.Context, config runtime.ApplyConfiguration, opts ...ctrlclient.SubResourceApplyOption) error {
	options := (&ctrlclient.SubResourceApplyOptions{}).ApplyOpts(opts)
	if options.SubResourceBody != nil {
		return fmt.Errorf("client: applying %s through a body of its own is not supported", s.name)
	}
	return s.client.apply(ctx, config, s.name, &options.ApplyOptions)
}
