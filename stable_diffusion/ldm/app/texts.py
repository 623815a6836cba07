"""What the page says, in English and Japanese, and which of them a visitor reads."""

from __future__ import annotations

import json
from typing import Any

from ldm.commands import as_typed
from ldm.util import UserError

LANGUAGES = ("en", "ja")
DOWNLOAD = as_typed("bash scripts/download_checkpoints.sh")

INTERFACE = {  # key → (English, Japanese); fixed when the page is served
    "title": ("Edit pictures by instruction", "ことばで画像を編集"),
    "about": (
        "Model {ckpt} · device {device} · precision {precision}",
        "モデル {ckpt} · デバイス {device} · 精度 {precision}",
    ),
    "embedded": (
        "This is the small embedded model: it edits drawn avatars, best at 64 px. "
        f"For photographs fetch the published one with <code>{DOWNLOAD}</code>.",
        "付属の小型モデルで動作中です。イラストのアバター専用で、64 px が最適です。"
        f"写真の編集には <code>{DOWNLOAD}</code> で公開モデルを入手してください。",
    ),
    "checked": (
        "A safety checker blurs results that it takes for pornographic; it knows no other harm, and errs "
        "both ways. The preview of a running edit is always blurred.",
        "編集後の画像は自動チェックされ、性的と判定されたものにはぼかしがかかります。"
        "それ以外の有害な内容は検出できず、判定には誤りもあります。途中経過は常にぼかして表示します。",
    ),
    "instruction": ("Instruction", "編集の指示"),
    "photo_hint": ("such as: turn him into a cyborg", "英語で入力（例：turn him into a cyborg）"),
    "drawing_hint": ("such as: add sunglasses", "英語で入力（例：add sunglasses）"),
    "generate": ("Generate", "生成"),
    "cancel": ("Cancel", "中止"),
    "example": ("Load Example", "例を読み込む"),
    "surprise": ("Surprise me", "おまかせ"),
    "reset": ("Reset", "リセット"),
    "input": ("Input image", "入力画像"),
    "drop": (
        "Drop a picture here, or click to choose one",
        "画像をドロップ、またはクリックして選択",
    ),
    "edited": ("Edited image", "編集後の画像"),
    "compare": ("Before / after", "前後を比較"),
    "again": ("Edit again", "続けて編集"),
    "download": ("Download PNG", "PNG を保存"),
    "gif": ("Make GIF", "GIF を作成"),
    "gif_made": ("The edits in turn", "編集の流れ"),
    "steps": ("Steps", "ステップ数"),
    "seed": ("Seed", "シード値"),
    "seed_mode": ("Seed of each edit", "シード値の扱い"),
    "fix_seed": ("Fix Seed", "固定"),
    "random_seed": ("Randomize Seed", "毎回ランダム"),
    "cfg_text": ("Text CFG", "テキスト CFG"),
    "cfg_image": ("Image CFG", "画像 CFG"),
    "cfg_mode": ("CFG of each edit", "CFG の扱い"),
    "fix_cfg": ("Fix CFG", "固定"),
    "random_cfg": ("Randomize CFG", "毎回ランダム"),
    "more": ("More settings", "詳細設定"),
    "sampler": ("Sampler", "サンプラー"),
    "schedule": ("Noise schedule", "ノイズスケジュール"),
    "count": ("Number of images", "生成する枚数"),
    "resolution": ("Resolution (longer side, px)", "解像度（長辺、px）"),
    "history": ("History of this session", "このセッションの履歴"),
    "tips": ("Tips", "うまく編集するコツ"),
    "photo_tips": (
        """
1. **Too little changes?** Lower the image CFG a little, say to 1.2, or raise the text CFG, say to 9.
2. **Too much changes?** Do the opposite: raise the image CFG, or lower the text CFG.
3. **Say it in other words.** "make it snow", "add snow" and "what would it look like in winter?" give
   different pictures.
4. **Take more steps** when details look unfinished: 100 is a good number, 20 are enough to try something.
5. **Try other seeds.** What fails with one often works with another: randomize, and ask for several images.
6. **Small faces suffer.** Crop the picture so that the face is larger, or raise the resolution.
""",
        """
1. **変化が足りないとき**は、画像 CFG を少し下げる（1.2 など）か、テキスト CFG を上げます（9 など）。
2. **変わりすぎるとき**はその逆に、画像 CFG を上げるか、テキスト CFG を下げます。
3. **言い方を変えてみましょう。** "make it snow"、"add snow"、"what would it look like in winter?" \
では結果が変わります。
4. **細部が粗いとき**はステップ数を増やします。100 が目安で、試すだけなら 20 で十分です。
5. **シード値を変える**とうまくいくことがよくあります。「毎回ランダム」で数枚まとめて生成してみてください。
6. **小さな顔は崩れやすいです。** 顔が大きく写るように切り抜くか、解像度を上げてください。
""",
    ),
    "drawing_tips": (
        """
1. **Too little changes?** Raise the text CFG, say to 2.5, or lower the image CFG to 1.
2. **Too much changes?** Do the opposite: text CFG 1.2, or image CFG 1.5.
3. **Name a thing and a colour.** The model knows hair, beards, glasses, hats, masks, moods, skin, clothes and
   backgrounds: "give him long blonde hair", "make the background orange".
4. **Few steps are enough**: 20 give almost the picture that 50 do.
5. **Try other seeds.** Randomize, and ask for several images at once: they are made together.
6. **One head, in the middle.** Crop to a square with head and shoulders; the model does not know photographs
   or full figures.
""",
        """
1. **変化が足りないとき**は、テキスト CFG を上げる（2.5 など）か、画像 CFG を 1 に下げます。
2. **変わりすぎるとき**はその逆に、テキスト CFG を 1.2、または画像 CFG を 1.5 にします。
3. **物と色を具体的に。** 髪、ひげ、眼鏡、帽子、マスク、表情、肌、服、背景を変えられます\
（例："give him long blonde hair"、"make the background orange"）。
4. **ステップ数は少なめで大丈夫。** 20 でも 50 とほぼ同じ結果になります。
5. **シード値を変えてみましょう。** 「毎回ランダム」で数枚まとめて生成するのがおすすめです。
6. **顔は中央に一つ。** 頭と肩が入る正方形に切り抜いてください。写真や全身像には対応していません。
""",
    ),
}
MESSAGES = {  # key → (English, Japanese); said when something happens
    "waiting": ("Waiting: {ahead} before this one", "順番待ち：あと {ahead} 件"),
    "starting": ("Starting …", "開始しています…"),
    "step": ("Step {step} of {steps}", "ステップ {step} / {steps}"),
    "left": ("about {seconds} s left", "残り約 {seconds} 秒"),
    "cancelled": ("Cancelled.", "中止しました。"),
    "empty": (
        "The instruction is empty: this is the input, only resized.",
        "指示が空のため、入力画像をサイズだけ調整して表示しています。",
    ),
    "next": (
        "The edited image is now the input (edits so far: {number}).",
        "編集後の画像を入力にしました（これまでの編集：{number} 回）。",
    ),
    "blurred": (
        "Blurred: the safety checker takes this picture for pornographic (score {score}, over {limit}). "
        "It may be wrong: try another seed or instruction.",
        "性的な画像と自動判定されたため、ぼかしをかけました（スコア {score}、基準 {limit} 超）。"
        "誤判定の可能性もあります。シード値や指示を変えてお試しください。",
    ),
    "blurred_mark": ("blurred: ", "ぼかし："),  # before an instruction
    "restored": ("Settings restored from this picture.", "この画像に保存されていた設定を復元しました。"),
    "no_picture": ("Choose an input image first.", "先に入力画像を選んでください。"),
    "no_result": ("Generate an edit first.", "先に画像を生成してください。"),
    "gone": (
        "That picture is no longer on the server; please upload it again.",
        "その画像はサーバーに残っていません。もう一度アップロードしてください。",
    ),
    "broken": (
        "This is not a picture, or a broken one.",
        "画像として読み込めません。ファイルが壊れている可能性があります。",
    ),
    "bytes": (
        "The file is too large: at most {limit} MB.",
        "ファイルが大きすぎます（上限 {limit} MB）。",
    ),
    "pixels": (
        "The picture is too large: at most {limit} million pixels.",
        "画像が大きすぎます（上限 {limit} 百万画素）。",
    ),
    "shape": (
        "Expected sides of at least {side} px and at most {ratio}:1, got {width} x {height}.",
        "各辺は {side} px 以上、縦横比は {ratio}:1 以内にしてください（{width} x {height}）。",
    ),
    "range": (
        "{name}: expected a number from {low} to {high}.",
        "{name}：{low} から {high} の値を入力してください。",
    ),
    "choice": ("{name}: {value} is not offered here.", "{name}：{value} は選べません。"),
    "long": (
        "The instruction is too long: at most {limit} characters.",
        "指示が長すぎます（{limit} 文字まで）。",
    ),
    "full": (
        "The queue is full ({size} edits wait). Please try again soon.",
        "ただいま混み合っています（{size} 件待ち）。しばらくしてからお試しください。",
    ),
    "memory": (
        "Too little memory to edit at {width} x {height} pixels: choose a lower resolution.",
        "メモリ不足のため {width} x {height} ピクセルでは編集できません。解像度を下げてください。",
    ),
    "not_a_number": (
        "The result in {precision} is not a number: choose smaller CFG values.",
        "{precision} では計算が発散しました。CFG を小さくしてください。",
    ),
    "failed": ("The edit failed: {reason}", "編集できませんでした：{reason}"),
}


class Problem(UserError):
    """What a visitor did or met that ends a request; as a string in English.

    Args:
        key: of `MESSAGES`.
        values: named in that message; one that is a key of `INTERFACE` is translated too.
    """

    def __init__(self, key: str, **values: Any) -> None:
        self.key = key
        self.values = values
        super().__init__(say("en", key, **values))


def say(language: str, key: str, **values: Any) -> str:
    """The message of that key in a language, with its values."""
    column = LANGUAGES.index(language)
    words = {name: INTERFACE[v][column] if v in INTERFACE else v for name, v in values.items()}
    return MESSAGES[key][column].format(**words)


def explain(language: str, error: UserError) -> str:
    """What went wrong, in a language; what other parts of the project say stays in English."""
    return say(language, error.key, **error.values) if isinstance(error, Problem) else str(error)


def interface(chosen: str | None, **about: str | None) -> dict[str, dict[str, str]]:
    """All fixed texts by key, for each of the languages that a browser may ask for.

    Args:
        chosen: the language for everybody; None leaves it to the browser.
        about: says which model is loaded.
    """
    return {language: _texts(LANGUAGES.index(chosen or language), about) for language in LANGUAGES}


def _texts(column: int, about: dict[str, str | None]) -> dict[str, str]:
    texts = {key: words[column] for key, words in INTERFACE.items()}
    return {**texts, "about": texts["about"].format(**about)}


def preferred(accept_language: str | None) -> str:
    """The one of `LANGUAGES` that an Accept-Language header likes best; English where it names none."""
    best, chosen = 0.0, LANGUAGES[0]
    for wish in (accept_language or "").split(","):
        tag, _, quality = wish.strip().partition(";q=")
        language = tag.partition("-")[0].lower()
        try:
            weight = float(quality or 1)
        except ValueError:
            continue
        if language in LANGUAGES and weight > best:
            best, chosen = weight, language
    return chosen


def language_script(chosen: str | None) -> str:
    """HTML that tells the browser the language of the page, by which it picks its fonts.

    Args:
        chosen: as for `interface`.
    """
    wished = json.dumps([chosen]) if chosen else "navigator.languages"
    return f"""<script>
{{
  const wished = {wished}.map((tag) => tag.split("-")[0].toLowerCase());
  document.documentElement.lang = wished.find((tag) => {json.dumps(LANGUAGES)}.includes(tag)) ?? "en";
}}
</script>"""
