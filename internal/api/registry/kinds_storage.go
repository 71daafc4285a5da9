package registry

import (
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/kubernetes/pkg/registry/storage/csidriver"
	"k8s.io/kubernetes/pkg/registry/storage/csinode"
	"k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity"
	"k8s.io/kubernetes/pkg/registry/storage/storageclass"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattachment"
	"k8s.io/kubernetes/pkg/registry/storage/volumeattributesclass"
)

// storageKinds say where volumes come from.
func storageKinds() []*definition {
	v1 := storagev1.SchemeGroupVersion
	return []*definition{
		define[storagev1.CSIDriver](v1, "csidrivers", csidriver.Strategy).returnsDeleted(),
		define[storagev1.CSINode](v1, "csinodes", csinode.Strategy).returnsDeleted(),
		define[storagev1.CSIStorageCapacity](v1, "csistoragecapacities", csistoragecapacity.Strategy),
		define[storagev1.StorageClass](v1, "storageclasses", storageclass.Strategy).short("sc").returnsDeleted(),
		define[storagev1.VolumeAttachment](v1, "volumeattachments", volumeattachment.Strategy).
			withStatus(volumeattachment.StatusStrategy).returnsDeleted(),
		define[storagev1.VolumeAttributesClass](v1, "volumeattributesclasses", volumeattributesclass.Strategy).short("vac").returnsDeleted(),
	}
}
