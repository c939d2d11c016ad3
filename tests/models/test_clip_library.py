"""What importing open_clip brings with it, in processes of their own."""

import subprocess
import sys
import textwrap


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_bundle_loads_without_what_its_clip_does_not_use(tiny_folder: object) -> None:
    found = _run(f"""
        import sys
        import worker.start
        from models.bundle import load_bundle
        load_bundle({str(tiny_folder)!r}).context.encode(["a cat"])
        slow = {{"torch._dynamo", "sympy", "timm", "transformers", "huggingface_hub", "diffusers"}}
        print(sorted(slow & set(sys.modules)))
    """)
    assert found == "[]"


def test_all_of_it_and_of_torchvision_is_there_for_those_who_need_it() -> None:
    found = _run("""
        from models.clip_library import open_clip
        least = open_clip(whole=False)
        assert least.timm_model.timm is None
        import torchvision.models
        from torchvision.ops import nms
        from torchvision.models.resnet import resnet18
        assert torchvision.models.resnet18 is resnet18
        whole = open_clip()
        assert whole.timm_model.timm.__name__ == "timm"
        assert whole.hf_model.transformers.__name__ == "transformers"
        assert whole is open_clip() is open_clip(whole=False)
        print(nms.__name__)
    """)
    assert found == "nms"
